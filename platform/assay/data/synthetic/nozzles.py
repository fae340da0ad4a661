"""A camera at the nozzle of seven printers: does enough plastic come out?

Drawn from a seed, with planted truth. Under-extruded lines are narrower than their pitch, so gaps show
between them; that is the signal, the same on every printer. Light, lens, colours and nozzle are the
printer's own and say nothing about it. A lamp on the carriage may be made a shortcut: it then agrees
with the label on all printers but the last, where it lies.
"""

import csv
import dataclasses
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import cv2
import numpy as np
from annotated_types import Interval, MultipleOf

from assay.config import Seed, Settings
from assay.data.synthetic.draw_once import draw_once, write_image
from assay.files import write_whole
from assay.shapes import Float32, UInt8

PRINTERS = ("021", "022", "023", "101", "102", "103", "104")

ODD_PRINTER = PRINTERS[-1]
"""The printer whose lamp lies where it is a shortcut."""

LAMP_AGREES = (0.98, 0.94, 0.90, 0.86, 0.82, 0.90, 0.10)
"""Share of frames of each printer whose lamp is as the label, where it is a shortcut; else it is random everywhere."""

FRAME_S = 0.5
"""Seconds from a frame to the next."""

TABLE = "frames.csv"
"""Columns of the competition's table: img_path (the stem is the Unix time), printer_id, print_id, has_under_extrusion."""

_FORMAT = 2  # raise it when the same config draws other pixels

_FIRST_TIME = 1_660_000_000  # Unix time of the first print

_MISSING = 0.35  # share of its width that an under-extruded line lacks

_SCATTER = 0.04  # of a line's width, as a share of the pitch


@dataclass(frozen=True, kw_only=True)
class NozzlesConfig(Settings, section="nozzles"):
    """Prints of seven printers, half of them under-extruded, filmed at the nozzle."""

    seed: Seed = 0
    """Key of everything that is drawn."""
    height_px: Annotated[int, Interval(ge=32, le=1024), MultipleOf(4)] = 64
    """Height of a frame in pixels; its width is twice that."""
    num_prints: Annotated[int, Interval(ge=2, le=10_000)] = 15
    """Prints of each printer."""
    num_frames: Annotated[int, Interval(ge=1, le=100_000)] = 20
    """Frames of each print, one every half second."""
    rise_s: Annotated[float, Interval(ge=0, le=1e6)] = 3.0
    """Seconds from a print's start until its fault shows in full."""
    signal: Annotated[float, Interval(ge=0, le=2)] = 1.0
    """How much narrower under-extruded lines are; 1: by 35 % of their pitch."""
    shortcut: bool = False
    """Let the lamp give the label away, on all printers but the last, where it lies."""


class Frame(NamedTuple):
    """A drawn image, and what was planted in it."""

    pixels: UInt8[np.ndarray, "h w 3"]
    width: float
    """Width of the lines as a share of their pitch."""
    lamp: bool


class _Printer(NamedTuple):
    """What all frames of a printer have in common."""

    light: np.ndarray
    """Brightness of each channel."""
    slope: np.ndarray
    """Change of the light to the right and to the bottom."""
    vignette: float
    blur: float
    """Deviation of the lens, in 64ths of the height."""
    pitch: float
    """Of lines, in 64ths of the height."""
    angle: float
    """Of lines against the vertical (radians)."""
    plate: np.ndarray
    nozzle: np.ndarray
    nozzle_width: float
    """At the top, in 64ths of the height."""


def draw_nozzles(folder: Path, config: NozzlesConfig) -> None:
    """Write `images/<printer>/<print>/<time>.png`, `frames.csv` and `truth.json`.

    A second call with the same config returns at once; the truth is written last.

    Raises:
        ConfigError: The folder holds frames drawn with another config.
    """

    def draw_frames() -> dict[str, Any]:
        truth, lines = {}, io.StringIO()
        table = csv.writer(lines)
        table.writerow(("img_path", "printer_id", "print_id", "has_under_extrusion"))
        for printer, name in enumerate(PRINTERS):
            for number in range(config.num_prints):
                print_id = str(printer * config.num_prints + number + 1)
                for index in range(config.num_frames):
                    frame = draw_frame(config, printer, number, index)
                    path = f"images/{name}/{print_id}/{_time(config, printer, number, index)}.png"
                    write_image(folder / path, frame.pixels)
                    table.writerow((path, name, print_id, int(is_faulty(printer, number))))
                    truth[path] = {"width": frame.width, "lamp": frame.lamp}
        write_whole(folder / TABLE, lines.getvalue().encode())
        return {"images": truth}

    draw_once(folder, {"format": _FORMAT, **dataclasses.asdict(config)}, draw_frames)


def is_faulty(printer: int, number: int) -> bool:
    """Tell whether a print is under-extruded: every other one of a printer."""
    return (printer + number) % 2 == 1


def _time(config: NozzlesConfig, printer: int, number: int, index: int) -> str:
    """Return the Unix time of a frame; prints follow each other, a minute apart."""
    length = config.num_frames * FRAME_S + 60
    seconds = (printer * config.num_prints + number) * length + index * FRAME_S
    return f"{_FIRST_TIME + seconds:.1f}"


def draw_frame(config: NozzlesConfig, printer: int, number: int, index: int) -> Frame:
    """Draw one frame of one print: the printed lines below, the nozzle above them, and the lamp."""
    traits = _draw_traits(config.seed, printer)
    print_rng = np.random.default_rng([config.seed, 1, printer, number])
    rng = np.random.default_rng([config.seed, 2, printer, number, index])
    filament = print_rng.uniform(90, 230, 3)
    faulty = is_faulty(printer, number)
    risen = min(1.0, (index + 1) * FRAME_S / config.rise_s) if config.rise_s else 1.0
    lacks = config.signal * _MISSING * risen * print_rng.uniform(0.8, 1.2)
    width = 1 + _SCATTER * rng.standard_normal() - faulty * lacks
    agrees = rng.random() < (LAMP_AGREES[printer] if config.shortcut else 0.5)
    lamp = bool(faulty == agrees)
    unit = config.height_px / 64
    angle = traits.angle + print_rng.uniform(-0.1, 0.1)
    relief, covered = _draw_lines(rng, config.height_px, traits.pitch * unit, angle, width)
    image = np.where(covered[..., None], relief[..., None] * filament, traits.plate)
    tip = (2 * 32 + rng.uniform(-4, 4), 30 + rng.uniform(-1, 1))
    _draw_nozzle(image, traits, tip, filament, width, unit)
    image = cv2.GaussianBlur(image, (0, 0), traits.blur * unit)
    image = image * _draw_light(rng, traits, config.height_px)[..., None] * traits.light
    if lamp:
        cv2.circle(image, (round(8 * unit), round(8 * unit)), round(3 * unit), (250, 60, 40), -1)
    image += rng.normal(0, 4, image.shape)
    return Frame(np.rint(image).clip(0, 255).astype(np.uint8), float(width), lamp)


def _draw_traits(seed: int, printer: int) -> _Printer:
    rng = np.random.default_rng([seed, 0, printer])
    return _Printer(
        light=rng.uniform(0.7, 1.15) * rng.uniform(0.85, 1.15, 3),
        slope=rng.uniform(-0.2, 0.2, 2),
        vignette=rng.uniform(0.0, 0.3),
        blur=rng.uniform(0.4, 0.8),
        pitch=rng.uniform(6.5, 9.5),
        angle=rng.uniform(-0.5, 0.5),
        plate=rng.uniform(15, 45) * rng.uniform(0.8, 1.2, 3),
        nozzle=rng.uniform(60, 200) * rng.uniform(0.8, 1.2, 3),
        nozzle_width=rng.uniform(16, 30),
    )


def _draw_lines(
    rng: np.random.Generator, height: int, pitch: float, angle: float, width: float
) -> tuple[np.ndarray, np.ndarray]:
    """Draw round beads side by side (brightness by their height), and where they cover the plate."""
    y, x = np.mgrid[:height, : 2 * height].astype(np.float32)
    across = (x * np.cos(angle) + y * np.sin(angle)) / pitch + rng.uniform(0, 1)
    # from the middle of a bead, in units of its half width
    offset = 2 * (across % 1 - 0.5) / width
    inside = np.abs(offset) < 1
    relief = 0.5 + 0.5 * np.sqrt(np.clip(1 - offset**2, 0, 1))
    return relief, inside & (y > 0.45 * height)


def _draw_nozzle(
    image: np.ndarray,
    traits: _Printer,
    tip: tuple[float, float],
    filament: np.ndarray,
    width: float,
    unit: float,
) -> None:
    """Draw the fresh strand at the tip, as wide as the lines, and the nozzle above it."""
    x, y = tip
    half, strand = traits.nozzle_width / 2, 0.5 * traits.pitch * width
    for left, right, low, colour in (
        ((x - strand, y), (x + strand, y), (strand, y + 5), 0.9 * filament),
        ((x - half, 0), (x + half, 0), (3.0, y), traits.nozzle),
    ):
        reach, bottom = low
        corners = np.array([left, right, (x + reach, bottom), (x - reach, bottom)])
        cv2.fillPoly(image, [np.rint(corners * unit).astype(np.int32)], colour.tolist())


def _draw_light(
    rng: np.random.Generator, traits: _Printer, height: int
) -> Float32[np.ndarray, "h w"]:
    x = np.linspace(-1, 1, 2 * height, dtype=np.float32)[None]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    right, down = traits.slope.astype(np.float32)
    flicker = np.float32(rng.uniform(0.95, 1.05))
    light: np.ndarray = flicker * (1 + right * x + down * y)
    light *= 1 - np.float32(traits.vignette) * (x**2 + y**2) / 2
    return light
