"""From a large image to the crops of self-supervision: cut from a warm store against decoding it whole and cropping.

python tests/benchmarks/views.py
"""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from bench import imread, photo, seconds, table, write

from assay.data.images.store import Store
from assay.data.inputs.transforms import change_colours
from assay.data.inputs.views import ViewConfig, ViewInput

SIZE = 5100
COLOURS = ViewConfig()
PLAIN = replace(
    COLOURS, hflip=0.0, jitter=0.0, grey=0.0, blur=0.0, blur_global=(0.0, 0.0), solarise=0.0
)


def boxes(config: ViewConfig, rng: np.random.Generator) -> list[tuple[int, int, int, int, int]]:
    """Left, top, width and height of square crops, and the side that each is to have."""
    crops = [(config.global_px, config.global_area)] * config.num_global
    crops += [(config.local_px, config.local_area)] * config.num_local
    drawn = []
    for side, area in crops:
        length = int(SIZE * np.sqrt(rng.uniform(*area)))
        x, y = rng.integers(0, SIZE - length + 1, 2).tolist()
        drawn.append((x, y, length, length, side))
    return drawn


def whole(file: Path, config: ViewConfig) -> Callable[[], list[np.ndarray]]:
    """Decode everything, crop and shrink by areas, and change colours; written without Assay's crops."""
    rng = np.random.default_rng(0)

    def step() -> list[np.ndarray]:
        pixels = imread(file, cv2.IMREAD_COLOR_RGB)
        views = []
        for number, (x, y, width, height, side) in enumerate(boxes(config, rng)):
            crop = pixels[y : y + height, x : x + width]
            crop = cv2.resize(crop, (side, side), interpolation=cv2.INTER_AREA)
            blur = (*config.blur_global, *config.num_local * (config.blur,))[number]
            solarise = config.solarise * (number == 1)
            seed = int(rng.integers(1 << 31))
            views.append(change_colours(crop, config.jitter, config.grey, blur, solarise, seed))
        return views

    return step


def cut(store: Store, config: ViewConfig) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    """Draw the same numbers and sizes of crops from the store's entry."""
    views, keys = ViewInput(config), iter(range(1_000_000))
    return lambda: views.draw(store.open("image"), next(keys))


def main() -> None:
    """Measure with and without changes of colour."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file, store = Path(folder) / "image.jpg", Store(folder)
        cv2.imwrite(str(file), photo(SIZE)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
        store.build("image", file)
        for name, config in (("no", PLAIN), ("yes", COLOURS)):
            ways = {"whole": whole(file, config), "cut": cut(store, config)}
            taken = seconds(ways, 9)
            figures = (f"{1000 * taken[way]:.1f} ms" for way in ways)
            rows.append([name, *figures, f"{taken['whole'] / taken['cut']:.0f}x"])
    header = ["colours changed", "decoded and cropped", "cut from the store", "faster"]
    sizes = f"{COLOURS.num_global} crops of {COLOURS.global_px} px and {COLOURS.num_local} of {COLOURS.local_px} px"
    write(
        __file__,
        f"DINOv2's {sizes} of a JPEG of {SIZE}x{SIZE}, shares of the area drawn alike. Goal: 20 times faster, warm.",
        table(header, rows),
    )


if __name__ == "__main__":
    main()
