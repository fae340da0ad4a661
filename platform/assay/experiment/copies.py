"""Near-duplicates of a data set, looked for once, on all CPUs that Ray has, and kept beside the runs.

<storage>/near/<digest of the contents and of how they are compared>.parquet
"""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa

from assay.config import fingerprint
from assay.data import near
from assay.data.images.pixels import Pixels
from assay.data.near.copies import NearPair
from assay.data.near.pairs import near_pairs
from assay.data.near.sketch import Sketch, sketch, thumbnail
from assay.data.spread import one_by_one
from assay.experiment.spread import over_cluster
from assay.files import read_parquet, write_parquet
from assay.shapes import UInt8

IMAGES, FEW = 64, 500
"""Images that are sketched as one piece of work; of fewer than the second nothing is shared out, since processes would begin for seconds of work."""


def copies_among(
    pixels: Pixels, signatures: UInt8[np.ndarray, "rows 32"], storage: Path
) -> list[NearPair]:
    """Return the pairs of images that are copies of one another.

    Args:
        pixels: the stored images.
        signatures: of their rows.
        storage: the folder of the runs.

    Raises:
        RunError: the kept pairs are damaged.
        StoreError: an image is damaged.
    """
    rows = {content: row for row, content in enumerate(pixels.contents)}
    contents = sorted(rows)
    sources = {path.name: path.read_text() for path in sorted(Path(near.__path__[0]).glob("*.py"))}
    path = storage / "near" / f"{fingerprint({'contents': contents} | sources)}.parquet"
    if path.exists():
        table = read_parquet(path, ("first", "second", "agreement"))
        return [NearPair(**row) for row in table.to_pylist()]
    order = [rows[content] for content in contents]
    pieces = [order[i : i + IMAGES] for i in range(0, len(order), IMAGES)]
    spread = one_by_one if len(order) < FEW else over_cluster
    sketches = list(chain.from_iterable(spread(_sketch, pixels, pieces, "sketch")))
    pairs = near_pairs(contents, signatures[order], sketches, spread)
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        "first": pa.array([pair.first for pair in pairs], pa.string()),
        "second": pa.array([pair.second for pair in pairs], pa.string()),
        "agreement": pa.array([pair.agreement for pair in pairs], pa.float64()),
    }
    write_parquet(path, pa.table(columns))
    return pairs


def _sketch(pixels: Pixels, rows: Sequence[int]) -> list[Sketch]:
    return [sketch(thumbnail(pixels[row])) for row in rows]
