"""How a program ends: in a sentence, by Ctrl-C, when nobody reads it; and what stays a traceback."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import assay
from assay.errors import ConfigError, DiskError, disk_faults, one_sentence

PACKAGED = Path(assay.__file__).parent / "pages" / "gone.html"


def ended(capsys: pytest.CaptureFixture[str], act: Callable[[], object]) -> tuple[int, str]:
    """Exit code and what was said."""
    with pytest.raises(SystemExit) as left, one_sentence():
        act()
    return int(left.value.code or 0), capsys.readouterr().err


def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("lr is -1."), 2, "ConfigError: lr is -1.\n"),
        (KeyboardInterrupt(), 130, "Stopped; the same command goes on where this one ended.\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/a.json"),
            2,
            "DiskError: runs/a.json cannot be read or written (No space left on device); mend that, and give the same command again: what was written before is kept.\n",
        ),
        (OSError(errno.EROFS, "Read-only file system"), 2, "DiskError: A file cannot be"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 2, "DiskError: x cannot be"),
    ],
)
def test_what_a_user_can_mend_ends_in_a_sentence(capsys, error, code, said):
    got, text = ended(capsys, lambda: fail(error))
    assert got == code
    assert text.startswith(said)
    assert len(text.splitlines()) == 1


def test_an_output_that_was_closed_before_is_no_fault(monkeypatch):
    """As under a daemon, or by >&-."""
    monkeypatch.setattr(sys, "stdout", None)
    with one_sentence():
        print("nobody reads this")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a bug"),
        ConnectionError("of a network, without a file"),
        FileNotFoundError(errno.ENOENT, "No such file", str(PACKAGED)),
        OSError(errno.EBADF, "Bad file descriptor"),
    ],
)
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)), one_sentence():
        raise error


@pytest.mark.parametrize("place", ["/dev/null/x", ".", "nowhere/x"])
def test_paths_that_cannot_be_files_are_named(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DiskError, match=rf"^{place} cannot be read or written"), disk_faults():
        Path(place).read_text()


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_has_seen_enough_is_no_fault(lines):
    code = (
        f"from assay.errors import one_sentence\nwith one_sentence():\n    print('x\\n' * {lines})"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(assay.__file__).parents[1])},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141
