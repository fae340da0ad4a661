"""Mutated image files: pixels or an ImageError may come out, and nothing else.

Children read them, so that one that dies, prints, takes too long or too much memory is counted.

python tests/benchmarks/fuzz.py [files of each format]
"""

import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
from bench import table, write
from mutate import files, mutate

from assay.data.images import decode
from assay.data.images.formats.samples import FormatError
from assay.data.images.pyramid import ImagePyramid
from assay.errors import ImageError

NUM = 10_000
SLOW_S = 1.0
MOST_MB = 1500
"""Above what the interpreter and its libraries take."""


MOST_PIXELS = 10**6


def outcome(content: bytes, page: int | None) -> str:
    """What becomes of a file: its pixels' hash, or which refusal."""
    try:
        size = decode.probe(content, page=page)
        if size[0] * size[1] > MOST_PIXELS:
            return "refused"
        pixels = decode.read(content, page=page, max_pixels=MOST_PIXELS)
        if pixels.shape != (*size, 3):
            return "another size"
        for plane in ("level", "index", "alpha"):
            try:
                decode.read_plane(content, plane, page=page)
            except ImageError:
                continue
        ImagePyramid.read(content, page)
        return str(hash(pixels.tobytes()))
    except ImageError as error:
        return "refused" if isinstance(error.__cause__, FormatError) else "refused by a decoder"


def child(form: str, start: int, stop: int) -> None:
    """Read mutated files, one line for each."""
    originals = files()[form]
    right = [outcome(content, 0) for content in originals]
    limit = MOST_MB * 2**20 + _address_space()
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for number in range(start, stop):
        which = number % len(originals)
        content = mutate(np.random.default_rng([number, len(form)]), originals[which])
        began = time.process_time()  # others may have the machine
        what = outcome(content, 0 if number % 3 else None)
        if time.process_time() - began > SLOW_S:
            what = "slow"
        elif what.lstrip("-").isdigit():
            what = "read as before" if what == right[which] else "read otherwise"
        print(what, flush=True)


def _address_space() -> int:
    """Bytes of this process's address space so far."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def fuzz(form: str, num: int) -> Counter[str]:
    """Count what becomes of mutated files; a child that dies is followed by another."""
    counts: Counter[str] = Counter()
    start = 0
    while start < num:
        command = [sys.executable, __file__, "child", form, str(start), str(num)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = done.stdout.splitlines()
        counts.update(lines)
        start += len(lines)
        if done.returncode or done.stderr:
            counts["died" if done.returncode else "printed"] += 1
            print(form, start, done.returncode, done.stderr[-2000:], file=sys.stderr)
            start += bool(done.returncode)
    return counts


def main(num: int) -> None:
    """Fuzz every format."""
    named = ("read as before", "read otherwise", "refused", "refused by a decoder")
    rows = []
    for form in files():
        began = time.perf_counter()
        counts = fuzz(form, num)
        other = sum(counts.values()) - sum(counts[name] for name in named)
        taken = f"{time.perf_counter() - began:.0f} s"
        numbers = [num, *(counts[name] for name in named), other]
        rows.append([form, *map(str, numbers), taken])
    head = ["format", "files", *named, "anything else", "time"]
    note = (
        "Mutated files of each format, read by `probe`, `read`, `read_plane` and as a pyramid: bits flipped, cut off, numbers of 16 and 32 bits "
        "overwritten, pieces removed, repeated and exchanged, a PNG's sums mended. Anything else is a child that died, output on stderr, "
        f"another exception, another size than probed, more than {SLOW_S:g} s or {MOST_MB} MB; it must be 0."
    )
    write(__file__, note, table(head, rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        main(int(sys.argv[1]) if sys.argv[1:] else NUM)
