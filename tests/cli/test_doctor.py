"""What `assay doctor` makes of what nodes say of themselves."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from assay.cli import doctor
from assay.cli.doctor import Finding, Probe, findings

SOUND = Probe(
    name="10.0.0.1",
    python="3.11.9",
    versions={"ray": "2.60.0", "torch": "2.14.1", "assay": "0.1.0"},
    gpus=1,
    told_gpus=1,
    shm_gb=16.0,
    store_gb=8.0,
    clock_s=1000.0,
    storage="",
    listening=(22,),
)


def found(other: Probe, silent: list[str] | None = None) -> dict[str, Finding]:
    lines = findings([SOUND, replace(other, name="10.0.0.2")], silent or [], "/mnt/runs")
    return {line.what: line for line in lines}


def test_a_sound_cluster_has_nothing_to_mend() -> None:
    lines = found(SOUND)
    assert all(line.is_good for line in lines.values())
    assert lines["ray"].text == "2.60.0 on all"
    assert lines["GPUs"].text == "2, as Ray says"


@pytest.mark.parametrize(
    ("change", "what", "says"),
    [
        ({"python": "3.12.1"}, "Python", "differs: 3.11.9 on 10.0.0.1; 3.12.1 on 10.0.0.2"),
        ({"versions": SOUND.versions | {"assay": ""}}, "assay", "none on 10.0.0.2"),
        ({"gpus": 0}, "GPUs", "10.0.0.2 has 0, Ray says 1"),
        ({"storage": "Permission denied"}, "storage", "10.0.0.2: Permission denied"),
        ({"skew_s": -7.5}, "clock", "10.0.0.2 by -7.5 s"),
        ({"shm_gb": 0.1}, "/dev/shm", "10.0.0.2 has 0.1 GB for an object store of 8.0"),
        ({"listening": (22, 8265)}, "ports", "8265 (dashboard and jobs) on 10.0.0.2"),
    ],
)
def test_each_fault_is_told_with_its_node(
    change: dict[str, Any], what: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "has_token", lambda: False)
    lines = found(replace(SOUND, **change))
    assert {name for name, line in lines.items() if not line.is_good} == {what}
    assert says in lines[what].text


def test_a_node_that_does_not_answer_is_named() -> None:
    assert found(SOUND, ["10.0.0.3"])["nodes"].text == "10.0.0.3 did not answer in 120 s"


def test_a_clock_is_off_where_the_time_on_the_way_cannot_explain_it() -> None:
    times = {990.0: 0.0, 1000.0: 0.0, 970.0: -10.0, 1025.0: 5.0}
    for clock_s, skew_s in times.items():
        probed = doctor._with_skew(replace(SOUND, clock_s=clock_s), 980.0, 1020.0)
        assert probed.skew_s == skew_s


def test_the_kernels_table_tells_what_is_open_to_others(tmp_path: Path) -> None:
    head = "  sl  local_address rem_address   st tx_queue\n"
    rows = ["0: 0100007F:1F40 00000000:0000 0A 0", "1: 00000000:2049 00000000:0000 0A 0"]
    (tmp_path / "tcp").write_text(head + "\n".join([*rows, "2: 0A00000A:0050 0B00000A:C000 01 0"]))
    six = "0: 00000000000000000000000001000000:18EB 0:0 0A 0\n1: " + "0" * 32 + ":2711 0:0 0A 0"
    (tmp_path / "tcp6").write_text(head + six)
    assert doctor._listening(tmp_path) == {8265, 10001}


def test_storage_that_is_not_shared_or_not_writable_is_told(tmp_path: Path) -> None:
    mark = f"{tmp_path}/.doctor"
    assert doctor._try_storage(str(tmp_path), mark, "") == ""
    assert doctor._try_storage(str(tmp_path), mark, "10.0.0.2") == ""
    assert [path.name for path in tmp_path.iterdir()] == [".doctor"]
    other = doctor._try_storage(str(tmp_path), f"{tmp_path}/.doctor-2", "10.0.0.2")
    assert "no folder that all nodes share" in other
    (tmp_path / "file").touch()
    assert doctor._try_storage(str(tmp_path / "file"), f"{tmp_path}/file/.doctor", "")
    assert "/proc/assay" in doctor._try_storage("/proc/assay", "/proc/assay/.doctor", "")
