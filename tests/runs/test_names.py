import pytest

from assay.runs.names import attempts, is_copy, is_run_name

ID = "fingerprint-0123456789ab"
COPIES = [
    f"{ID}-backup",
    f"{ID}.old",
    f"{ID}_2",
    f"{ID} (1)",
    f"{ID}-1",
    f"{ID}-02",
    f"{ID}-20261128",
    f"{ID}-2-backup",
    f"copy of {ID}",
    f"backup-{ID}",
    f"old_{ID}",
    f"{ID} - Kopie",
]


@pytest.mark.parametrize("name", [ID, f"{ID}-2", f"{ID}-10"])
def test_what_assay_names_is_no_copy(name):
    assert is_run_name(name, "fingerprint")
    assert is_run_name(name, "")
    assert not is_copy(name, "fingerprint")


@pytest.mark.parametrize("name", COPIES)
def test_a_name_around_that_of_a_run_is_a_copy(name):
    assert is_copy(name, "fingerprint")
    assert not is_run_name(name, "fingerprint")


@pytest.mark.parametrize("name", ["best", "toy-good", "fingerprint-2024", "sweeps"])
def test_a_name_of_ones_own_is_no_copy(name):
    assert not is_copy(name, "fingerprint")
    assert not is_run_name(name, "fingerprint")


def test_attempts_are_folders_of_that_name_and_a_number(tmp_path):
    assert attempts(tmp_path / "none", ID) == {}
    for name in (ID, f"{ID}-2", f"{ID}-10", f"{ID}a", *COPIES):
        (tmp_path / name).mkdir()
    (tmp_path / f"{ID}-11").touch()
    expected = {1: tmp_path / ID, 2: tmp_path / f"{ID}-2", 10: tmp_path / f"{ID}-10"}
    assert attempts(tmp_path, ID) == expected
