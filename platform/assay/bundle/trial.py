"""Opening a bundle in a process of its own, which may die of it, before anything depends on it.

A graph may crash onnxruntime, never end, or take all memory; what answers meanwhile must not notice.
"""

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import get_args

import assay
from assay.bundle.bundle import Bundle, Variant
from assay.bundle.card import NAME, Card, check_content, read_card
from assay.errors import BundleError, one_sentence
from assay.files import sha256_of

SECONDS = 300.0
"""Longest time that opening and the golden sample may take."""


TOGETHER_S = 10.0
"""The same of each bundle where several are opened in one process; those that take longer are tried alone."""


MOST_FILE_BYTES = 16 << 30
"""Largest file of a bundle."""


FLOOR_BYTES, BYTES_PER_BYTE = 8 << 30, 8
"""Most memory that a trial may take, and more by the size of the files; never more than half of what is free."""


_PASSES = "This bundle passes."


_PASSED: set[tuple[str, Variant]] = set()


def try_bundle(folder: Path, variant: Variant = "fp32", seconds: float = SECONDS) -> None:
    """Open a bundle in another process, on the CPU, and repeat its golden output there.

    What passed once in this process is compared with its hashes alone.

    Raises:
        BundleError: it does not open, takes too long, or ends the process.
    """
    check_content(folder, read_card(folder))
    key = _key(folder, variant)
    if key in _PASSED:
        return
    try:
        ended = _open_apart([(folder, variant)], seconds)
    except subprocess.TimeoutExpired:
        raise BundleError(
            f"{folder} does not open within {seconds:g} s; export it again, with a smaller graph."
        ) from None
    if ended.returncode == 0:
        _PASSED.add(key)
        return
    lines = ended.stderr.strip().splitlines() or [""]
    if ended.returncode == 2 and lines[-1].startswith("BundleError: "):
        raise BundleError(lines[-1].removeprefix("BundleError: "))
    with suppress(ValueError):
        lines = [f"signal {signal.Signals(-ended.returncode).name}"]
    raise BundleError(
        f"{folder} ends the process that opens it ({lines[-1][:200]}); export the bundle again."
    )


def try_together(bundles: Sequence[tuple[Path, Variant]]) -> None:
    """Open bundles one after the other in one other process, and note which pass: most of a trial is to begin a process.

    The first that does not, and what comes after it, is left to `try_bundle`, which says why.
    """
    keys = [_key(folder, variant) for folder, variant in bundles]
    with suppress(subprocess.TimeoutExpired):
        ended = _open_apart(bundles, min(SECONDS, TOGETHER_S * len(bundles)))
        _PASSED.update(keys[: ended.stdout.splitlines().count(_PASSES)])


def _key(folder: Path, variant: Variant) -> tuple[str, Variant]:
    return sha256_of(folder / NAME), variant


def _open_apart(
    bundles: Sequence[tuple[Path, Variant]], seconds: float
) -> subprocess.CompletedProcess[str]:
    """Run `main` on bundles."""
    package = str(Path(assay.__file__).parents[1])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    words = [word for folder, variant in bundles for word in (str(folder), variant)]
    return subprocess.run(
        [sys.executable, "-m", "assay.bundle.trial", *words],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "MALLOC_ARENA_MAX": "2"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds,
        check=False,
    )


@contextmanager
def apart(folder: Path, card: Card) -> Iterator[Path]:
    """Yield a copy that holds the files with a hash and no other, as the registry will.

    Raises:
        BundleError: a file is missing, is no plain file, has no hash, or is too large; and what the
            block raises of the copy, said of the bundle.
    """
    others = [path.name for path in folder.iterdir() if path.name not in (NAME, *card.sha256)]
    if others:
        raise BundleError(
            f"{folder} holds {', '.join(sorted(others))[:200]} without a hash in its {NAME}; take it away, or export the bundle again."
        )
    for name in card.sha256:
        path = folder / name
        if path.is_symlink() or not path.is_file() or path.stat().st_size > MOST_FILE_BYTES:
            raise BundleError(
                f"{path} is missing, a link, no plain file, or larger than {MOST_FILE_BYTES >> 30} GiB; export the bundle again."
            )
    with tempfile.TemporaryDirectory(prefix="assay-trial-") as copy:
        for name in (NAME, *card.sha256):
            try:
                os.link(folder / name, Path(copy) / name)
            except OSError:  # another file system
                shutil.copyfile(folder / name, Path(copy) / name)
        try:
            yield Path(copy)
        except BundleError as error:  # the copy is gone when this is read
            raise BundleError(str(error).replace(copy, str(folder))) from None


def _limit_memory(folder: Path) -> None:
    """Let opening take so much more memory than this process has, by the files and by what is free; and where it is short, end this process first."""
    with suppress(OSError, StopIteration):  # a system without /proc goes without this limit
        Path("/proc/self/oom_score_adj").write_text("1000")
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
        has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
        most = has + min(FLOOR_BYTES + BYTES_PER_BYTE * size, free // 2)
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        with suppress(ValueError):  # it is lower already
            resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def main(words: Sequence[str]) -> None:
    """Open bundles here, each by its folder and variant, and say which pass; exits with 2 and a sentence where one does not open."""
    for name, variant in zip(words[::2], words[1::2], strict=True):
        assert variant in get_args(Variant)
        _limit_memory(Path(name))
        with one_sentence():
            Bundle(Path(name), variant=variant, provider="cpu")  # type: ignore[arg-type]
        print(_PASSES, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
