"""What one core takes for each stage of a run on images of 26 megapixels; see `scaling`, which this is measured for."""

import pickle
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from bench import imread, photo
from feeding import CASES, feed, stored
from scipy import sparse

from assay.data.dataset import Dataset
from assay.data.hashes import content_hashes
from assay.data.images.pixels import Pixels
from assay.data.images.store import Store
from assay.data.manifest import Manifest
from assay.data.near import candidates
from assay.data.near.pairs import near_pairs
from assay.data.near.sketch import Sketch, sketch, standardise
from assay.data.split import draw_split
from assay.data.split_config import SplitConfig

ROWS = 20_000
"""Rows of a table by which stages of the driver are timed."""


@dataclass(frozen=True)
class Costs:
    """Seconds of one core, measured on this machine."""

    hash_gb: float
    fill: float
    """To decode an image of 26 megapixels and bring it into the store."""
    sketch: float
    words: float
    pair: float
    """Of a pair of images in the search for near-duplicates: the search compares all."""
    lay: float
    """To lay one candidate over another."""
    row: float
    """Of the driver, for a row: manifest, split, what workers are handed."""
    feed: float
    """To prepare an image and cut its patches, warm."""
    read_mb: float
    """Read for that."""
    bytes_of_row: float
    """Of what each worker is handed."""


def timed(step: Callable[[], Any]) -> float:
    """Seconds of processor time of a step."""
    began = time.process_time()
    step()
    return time.process_time() - began


def measure() -> Costs:
    """Time every stage on a few images, or some thousand rows."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = [folder / f"{i}.jpg" for i in range(4)]
        for i, file in enumerate(files):
            cv2.imwrite(str(file), photo(5100, i), [cv2.IMWRITE_JPEG_QUALITY, 95])
        size = sum(file.stat().st_size for file in files) / 1e9
        hashing = timed(lambda: content_hashes(files, folder / "hashes.sqlite"))
        store = Store(str(folder / "filled"))
        filling = [timed(partial(store.build, f"{i}", files[i])) for i in range(len(files))]
        thumbs = [standardise(imread(file)[:2048, :2048]) for file in files]
        sketching = [timed(partial(sketch, thumb)) for thumb in thumbs]
        (folder / "fed").mkdir()
        prepared, cut, read = feed(CASES[0], stored(CASES[0], folder / "fed"))
    pair, words = search_costs(sketch(thumbs[0]))
    row, size_of_row = driver_costs(ROWS)
    laid = [sketch(standardise(photo(512, i))) for i in range(2)]
    signatures = np.zeros((2, 32), np.uint8)
    lay = timed(lambda: [near_pairs(["a", "b"], signatures, laid) for _ in range(20)]) / 20
    return Costs(
        hash_gb=hashing / size,
        fill=statistics.median(filling),
        sketch=statistics.median(sketching),
        words=words,
        pair=pair,
        lay=lay,
        row=row,
        feed=prepared + cut,
        read_mb=read / 1e6,
        bytes_of_row=size_of_row,
    )


def search_costs(one: Sketch) -> tuple[float, float]:
    """Seconds to compare a pair of images by signatures and by words, and to give an image its words."""
    rng = np.random.default_rng(0)
    sketches = [
        replace(one, descriptors=rng.integers(0, 90, (64, 128)).astype(np.uint8))
        for _ in range(512)
    ]
    words = candidates._draw_words(sketches)
    parts = [each.descriptors for each in sketches]
    counting = timed(lambda: candidates._count_words(words, parts)) / len(parts)
    few = candidates._count_words(words, parts)
    bags = candidates._weigh(sparse.vstack([few] * (ROWS // len(parts)), "csr"))
    turned = bags[:, np.roll(np.arange(len(words)), len(words) // 2)].tocsr()
    signs = rng.choice(np.array([-1, 1], np.float32), (bags.shape[0], 256))
    blocks = candidates._blocks(bags.shape[0])[:: len(signs) // 1000]
    by_signature = timed(lambda: [candidates._near_rows(signs, block) for block in blocks])
    by_words = timed(lambda: [candidates._sharing_rows((bags, turned), block) for block in blocks])
    rows = sum(end - start for start, end in blocks)
    return (by_signature + by_words) / (rows * len(signs)), counting


def driver_costs(num: int) -> tuple[float, float]:
    """Seconds for a row of manifest, split and dataset, and bytes of a row of what a worker is handed."""
    ids = [f"{i:032x}" for i in range(num)]
    columns = {
        "id": ids,
        "image": [f"parts/maker{i % 21}/design{i % 9}/{i}.jpg" for i in range(num)],
        "label": [f"maker{(i // 6) % 21}" for i in range(num)],
        "group": [f"part{i // 6}" for i in range(num)],
        "content": ids,
        "split": pa.nulls(num, pa.string()),
    }
    handed: list[bytes] = []

    def prepare() -> None:
        manifest = Manifest(pa.table(columns))
        split = draw_split(manifest, SplitConfig(), [])
        pixels = Pixels(Store("nowhere"), ids)
        handed.append(pickle.dumps((manifest, split, Dataset.of(manifest, pixels))))

    return timed(prepare) / num, len(handed[0]) / num
