"""The README's figure of the synthetic castings: five kinds of defect in three sizes, sound ones, and copies.

    python tests/benchmarks/castings.py

Writes castings.jpg beside this file: in the first three rows small, medium and large defects, each
beside its casting with the mask's outline; then sound castings, and ten copies of one.
"""

from pathlib import Path

import cv2
import numpy as np

from assay.data.synthetic.castings import (
    Casting,
    CastingsConfig,
    copy_casting,
    defect_of,
    draw_casting,
)
from assay.data.synthetic.defects import PLANT

CONFIG = CastingsConfig(size_px=160)


def main() -> None:
    """Draw the sheet."""
    defects = [draw_casting(CONFIG, number) for number in range(0, 30, 2)]
    kinds = len(PLANT)
    rows = [
        [tile for casting in defects[i : i + kinds] for tile in (shown(casting), marked(casting))]
        for i in range(0, 3 * kinds, kinds)
    ]
    rows.append([shown(draw_casting(CONFIG, number)) for number in range(1, 4 * kinds, 2)])
    copies = [copy_casting(CONFIG, 22, copy, defects[11]) for copy in range(2 * kinds)]
    rows.append([shown(copy) for copy in copies])
    for column, kind in enumerate(PLANT):
        assert defect_of(2 * column)[0] == kind
        cv2.putText(
            rows[0][2 * column], kind, (4, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (20, 20, 20), 1
        )
    sheet = np.concatenate([np.concatenate(row, 1) for row in rows])
    cv2.imwrite(str(Path(__file__).with_suffix(".jpg")), sheet, [cv2.IMWRITE_JPEG_QUALITY, 85])


def shown(casting: Casting) -> np.ndarray:
    """An image as the network is shown it, in colour."""
    return cv2.cvtColor(casting.pixels, cv2.COLOR_GRAY2BGR)


def marked(casting: Casting) -> np.ndarray:
    """The image with the outline of its mask."""
    image = shown(casting)
    grown = cv2.dilate(casting.truth.astype(np.uint8), np.ones((5, 5), np.uint8))
    outlines = cv2.findContours(grown, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
    return cv2.drawContours(image, outlines, -1, (40, 60, 230), 1)


if __name__ == "__main__":
    main()
