"""Near-duplicates of a data set, looked for once and kept beside the runs.

<storage>/near/<digest of the contents and of how they are compared>.parquet
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from assay.config import fingerprint
from assay.data import near
from assay.data.images.pixels import Pixels
from assay.data.near.copies import NearPair
from assay.data.near.pairs import near_pairs
from assay.data.near.sketch import thumbnail
from assay.files import read_parquet, write_parquet
from assay.shapes import UInt8


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
    thumbnails = [thumbnail(pixels[row]) for row in order]
    pairs = near_pairs(contents, signatures[order], thumbnails)
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        "first": pa.array([pair.first for pair in pairs], pa.string()),
        "second": pa.array([pair.second for pair in pairs], pa.string()),
        "agreement": pa.array([pair.agreement for pair in pairs], pa.float64()),
    }
    write_parquet(path, pa.table(columns))
    return pairs
