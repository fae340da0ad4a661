"""The impeller of `castings`: its turned profile, what looks like a defect and is none, and the light.

Places are given as radius (1: the flange's edge) and angle about the axis of the casting, pictures on
fine pixels.
"""

from typing import NamedTuple

import cv2
import numpy as np

from assay.shapes import Bool, Float, Float32

# Radius (1: the flange's edge), height and reflectance of the turned profile. What follows the edge
# is the table.
_PROFILE = np.array(
    [
        (0.00, 0.00, 0.60), (0.185, 0.00, 0.42), (0.20, 0.20, 0.78), (0.27, 0.20, 0.80),
        (0.285, 0.00, 0.10), (0.52, 0.02, 0.09), (0.535, 0.16, 0.74), (0.60, 0.16, 0.76),
        (0.61, 0.10, 0.22), (0.635, 0.10, 0.25), (0.645, 0.15, 0.74), (0.97, 0.12, 0.76),
        (0.993, 0.08, 0.50), (1.007, 0.00, 0.62),
    ]
)  # fmt: skip


_NUM_BLADES = 6


STEPS = 720  # of the angle, where something is given all round


class Surface(NamedTuple):
    """A casting before it is lit, on fine pixels: places as radius and angle about the axis."""

    radius: Float32[np.ndarray, "h w"]
    angle: Float32[np.ndarray, "h w"]
    height: Float32[np.ndarray, "h w"]
    reflectance: Float32[np.ndarray, "h w"]
    pose: Float[np.ndarray, "2 3"]
    """From radii of the flange to fine pixels."""

    @property
    def scale(self) -> float:
        """Fine pixels in a radius of the flange."""
        return float(np.sqrt(np.linalg.det(self.pose[:, :2])))


def draw_surface(rng: np.random.Generator, side: int) -> Surface:
    """Turn, cast and pose a sound casting, with tool marks, stains and dust."""
    turn, scale = rng.uniform(0, 2 * np.pi), 0.4 * side * rng.uniform(0.93, 1.03)
    spin = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    axis = np.array([np.cos(tilt := rng.uniform(0, np.pi)), np.sin(tilt)])
    linear = scale * (np.eye(2) - rng.uniform(0, 0.05) * np.outer(axis, axis)) @ spin
    centre = side * (0.5 + rng.uniform(-0.04, 0.04, 2))
    y, x = np.mgrid[:side, :side].astype(np.float32)
    inverse = np.linalg.inv(linear).astype(np.float32)
    dx, dy = x - np.float32(centre[0]), y - np.float32(centre[1])
    u, v = inverse[0, 0] * dx + inverse[0, 1] * dy, inverse[1, 0] * dx + inverse[1, 1] * dy
    angle = np.arctan2(v, u)
    # the edge is not quite round: it was cast, not turned
    radius = np.hypot(u, v) / (1 + 0.005 * around(ripple(rng, 24), angle))
    bore, middle = 1 + rng.uniform(-0.03, 0.03, 2)
    warped = np.interp(_PROFILE[:, 0], [0, 0.2, 0.6, 1, 2], [0, 0.2 * bore, 0.6 * middle, 1, 2])
    height, reflectance = (across(warped, values, radius) for values in _PROFILE[:, 1:].T)
    blade = np.cos(_NUM_BLADES * (angle + 2.2 * radius)) * ((radius > 0.3) & (radius < 0.51))
    height += 0.03 * blade.clip(0.6, 1) - 0.018
    reflectance += 0.1 * (blade.clip(0.75, 1) - 0.75) / 0.25
    pose = np.concatenate([linear, centre[:, None]], axis=1)
    surface = Surface(radius, angle, height, reflectance, pose)
    _mark(rng, surface)
    return surface


def _mark(rng: np.random.Generator, surface: Surface) -> None:
    """Add what is no defect: turning grooves, tool arcs, as-cast grain, stains and dust."""
    radius, reflectance = surface.radius, surface.reflectance
    machined = reflectance > 0.6
    grooves = across(np.linspace(0, 1.5, 300), rng.standard_normal(300), radius)
    reflectance += np.float32(0.03) * grooves * (machined & (radius < 1))
    reflectance += 0.03 * cv2.GaussianBlur(rng.standard_normal(radius.shape, np.float32), (0, 0), 1)
    for _ in range(rng.poisson(3)):
        along = rng.uniform(-np.pi, np.pi) + np.linspace(0, rng.uniform(0.2, 1), 20)
        arc = line(surface, np.full(20, rng.uniform(0.67, 0.95)), along, rng.uniform(0.01, 0.025))
        reflectance[arc] *= rng.choice([0.75, 0.85, 1.2])
    for _ in range(rng.poisson(2)):
        blot = blob(rng, surface, rng.uniform(0.2, 1), rng.uniform(0.06, 0.16), 0.35)
        soft = cv2.GaussianBlur(blot.astype(np.float32), (0, 0), 0.02 * len(blot))
        reflectance *= 1 - rng.uniform(0.06, 0.2) * soft
    for _ in range(rng.poisson(8)):
        speck = blob(rng, surface, rng.uniform(0.05, 1.2), rng.uniform(0.006, 0.016), 0.3)
        reflectance[speck] = reflectance[speck] * 0.6 + rng.choice([0.0, 0.38])


def light_surface(rng: np.random.Generator, surface: Surface) -> Float32[np.ndarray, "h w"]:
    """Light a surface from one side: slopes, the fans that turned metal reflects, a shadow on the table."""
    radius, angle, height, reflectance, _ = surface
    side, scale = len(height), np.float32(surface.scale)
    towards = rng.uniform(-np.pi, np.pi)
    lamp = np.array([np.cos(towards), np.sin(towards)], np.float32)
    slope_y, slope_x = np.gradient(cv2.GaussianBlur(height, (0, 0), 0.8) * scale)
    facing = 1 - 0.45 * (slope_x * lamp[0] + slope_y * lamp[1]).clip(-1.2, 1.2)
    grid = np.linspace(-np.pi, np.pi, STEPS, endpoint=False)
    fans = 0.04 * ripple(rng, 360) - 0.15
    for at in rng.uniform(-np.pi, np.pi, 2):
        sharp = rng.uniform(4, 30)
        fans += rng.uniform(0.15, 0.4) * np.exp(sharp * (np.abs(np.cos(grid - at)) - 1))
    turned = (reflectance > 0.3) & (radius < 0.97) & (radius > 0.19)
    on_table = radius >= 1.0
    shadow = cv2.warpAffine(
        (~on_table).astype(np.float32),
        np.array([[1, 0, -0.03 * side * lamp[0]], [0, 1, -0.03 * side * lamp[1]]]),
        (side, side),
    )
    shade = 0.4 * cv2.GaussianBlur(shadow, (0, 0), 0.025 * side) * on_table
    ramp = np.linspace(-1, 1, side, dtype=np.float32)
    slope = np.float32(rng.uniform(0.03, 0.12)) * lamp
    level = np.float32(rng.uniform(0.85, 1.1)) + slope[0] * ramp[None] + slope[1] * ramp[:, None]
    lit = reflectance * (1 + around(fans, angle) * turned) * facing * (1 - shade) * level
    return lit.astype(np.float32)


def places(
    surface: Surface, radius: Float[np.ndarray, " n"], angle: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "n 2"]:
    """Return where points of the casting are (x, y in fine pixels)."""
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    pixels: np.ndarray = points @ surface.pose[:, :2].T + surface.pose[:, 2]
    return pixels


def line(
    surface: Surface,
    radius: Float[np.ndarray, " n"],
    angle: Float[np.ndarray, " n"],
    width: float,
) -> Bool[np.ndarray, "h w"]:
    """Draw a line through points of the casting, of a width in radii of the flange."""
    canvas = np.zeros(surface.radius.shape, np.uint8)
    points = np.rint(8 * places(surface, radius, angle)).astype(np.int32)
    cv2.polylines(canvas, [points], False, 1, max(1, round(width * surface.scale)), cv2.LINE_8, 3)
    return canvas > 0


def blob(
    rng: np.random.Generator,
    surface: Surface,
    radius: float,
    size: float,
    uneven: float,
    angle: float | None = None,
) -> Bool[np.ndarray, "h w"]:
    """Draw a disc with an uneven outline, at a radius of the casting; anywhere round it if no angle is given."""
    angle = rng.uniform(-np.pi, np.pi) if angle is None else angle
    centre = places(surface, np.array([radius]), np.array([angle]))[0]
    turns = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    outline = np.full(20, size * surface.scale)
    for waves in (2, 3, 5):
        outline *= 1 + uneven * rng.uniform(0, 1) * np.cos(waves * turns + rng.uniform(0, 6.3))
    corners = centre + outline[:, None] * np.stack([np.cos(turns), np.sin(turns)], axis=1)
    canvas = np.zeros(surface.radius.shape, np.uint8)
    cv2.fillPoly(canvas, [np.rint(8 * corners).astype(np.int32)], 1, cv2.LINE_8, 3)
    return canvas > 0


def across(
    radii: Float[np.ndarray, " n"],
    values: Float[np.ndarray, " n"],
    radius: Float32[np.ndarray, "h w"],
) -> Float32[np.ndarray, "h w"]:
    """Look up a function of the radius, given at rising radii with straight lines between them."""
    table = np.interp(np.linspace(0, 2, 4001), radii, values).astype(np.float32)
    return table[(radius * np.float32(2000)).astype(np.int32).clip(0, 4000)]


def around(
    values: Float[np.ndarray, "720"], angle: Float32[np.ndarray, "h w"]
) -> Float32[np.ndarray, "h w"]:
    """Look up a periodic function of the angle, given at equal steps from -pi."""
    steps = ((angle + np.float32(np.pi)) * np.float32(STEPS / (2 * np.pi))).astype(np.int32)
    return values.astype(np.float32)[steps % STEPS]


def ripple(rng: np.random.Generator, num: int) -> Float[np.ndarray, "720"]:
    """Draw a periodic function of the angle: straight lines between so many random values of -1 to 1."""
    steps = np.arange(STEPS) * num / STEPS
    return np.interp(steps, np.arange(num), rng.uniform(-1, 1, num), period=num)
