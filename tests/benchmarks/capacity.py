"""How much memory building the store takes: 100 images of 26 megapixels, and one of 400.

python tests/benchmarks/capacity.py
"""

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

import cv2
import numpy as np
import pyarrow as pa
import ray
from bench import local_ray, peak_mb, photo, table, write

from assay.data.hashes import content_hashes
from assay.data.images.store import Store
from assay.data.manifest import Manifest
from assay.experiment.fill import fill

SIZE, NUM_IMAGES, LARGEST = 5100, 100, 20_000


def drawn(folder: Path, size: int, num: int) -> list[Path]:
    """JPEG files of quality 95, no two alike."""
    paths, picture = [folder / f"{size}-{i}.jpg" for i in range(num)], photo(size)[..., ::-1]
    for i, path in enumerate(paths):
        moved = np.roll(picture, 20 * i, axis=0)
        cv2.imwrite(str(path), moved, [cv2.IMWRITE_JPEG_QUALITY, 95])
    return paths


def processes() -> dict[str, list[float]]:
    """Peak resident memory (MB) of this process and of Ray's workers below it, by kind."""
    parents, found = {}, {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":\t", 1) for line in status.read_text().splitlines())
            command = (status.parent / "cmdline").read_text().split("\0")[0]
        except OSError:
            continue  # it has ended meanwhile
        pid = int(status.parent.name)
        parents[pid] = int(lines["PPid"])
        if "VmHWM" in lines:
            found[pid] = command.split(" ")[0], int(lines["VmHWM"].split()[0]) / 1024
    kinds: dict[str, list[float]] = {"driver": [found[os.getpid()][1]], "worker": []}
    for pid, (command, peak) in found.items():
        above = pid
        while above > 1 and above != os.getpid():
            above = parents.get(above, 0)
        if above == os.getpid() and command.startswith("ray::"):
            kinds["worker"].append(peak)
    return kinds


def build(file: str, place: str) -> Iterator[None]:
    """One image into the store, for its peak memory."""
    yield
    Store(place).build("0" * 32, Path(file))


def fill_all(folder: Path) -> tuple[int, float, dict[str, list[float]]]:
    """Gigabytes written, seconds, and peaks of the processes."""
    files = drawn(folder, SIZE, NUM_IMAGES)
    contents = content_hashes(files, folder / "hashes.sqlite")
    images = [str(file) for file in files]
    local_ray()
    store = Store(str(folder / "store"))
    # the peak so far is of drawing the files
    Path("/proc/self/clear_refs").write_text("5")
    began = time.perf_counter()
    fill(Manifest(pa.table({"content": contents, "image": images})), store, "stop", parallel=True)
    seconds, peaks = time.perf_counter() - began, processes()
    ray.shutdown()
    return store.num_bytes(contents), seconds, peaks


def main() -> None:
    """Fill a store on all CPUs, then with one huge image in a fresh process."""
    with tempfile.TemporaryDirectory() as name:
        size, seconds, peaks = fill_all(Path(name))
        largest = drawn(Path(name), LARGEST, 1)[0]
        alone = peak_mb(build, str(largest), name + "/largest")
    rows = [
        ["driver", f"{max(peaks['driver']):.0f} MB"],
        [f"largest of {len(peaks['worker'])} workers", f"{max(peaks['worker']):.0f} MB"],
    ]
    write(
        __file__,
        f"A store of {NUM_IMAGES} images of {SIZE}x{SIZE} (JPEG files of quality 95), filled by Ray's tasks on 2 CPUs: {size / 1e9:.1f} GB in {seconds:.0f} s, {NUM_IMAGES / seconds:.1f} images/s. Peak resident memory of its processes, Python and libraries included:",
        table(["process", "peak"], rows),
        f"One image at the limit of 400 megapixels ({LARGEST}x{LARGEST}) raises the peak of the process that decodes it by {alone:.0f} MB.",
    )


if __name__ == "__main__":
    main()
