"""Three tiers, the same batches: which one is chosen, and that none changes a byte."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.data.dataset import Column, Dataset
from assay.data.images.affine import compose
from assay.data.images.clahe import Clahe
from assay.data.images.pixels import Pixels
from assay.data.images.pyramid import ImagePyramid
from assay.data.images.store import Store
from assay.data.inputs.augment import IDENTITY, Augment, AugmentConfig, draw_augment
from assay.data.inputs.patches import Canvas, PatchConfig
from assay.errors import ResourceError
from assay.train import tier as module
from assay.train.cutting import Cut, PatchCutter
from assay.train.device_images import equalise
from assay.train.recipes import reference_recipes
from assay.train.source import TaskSource, load_task
from assay.train.task import BatchRows
from assay.train.tier import choose_tier, fit_tier

SOURCE = TaskSource.read(Path(__file__).parents[2] / "tasks" / "fingerprint.py")
PRESETS = {name: recipe.augment for name, recipe in reference_recipes().items()}
CPU = torch.device("cpu")
RNG = np.random.default_rng(3)
SHAPES = [(200, 200), (120, 200), (200, 90), (300, 260)]
ENTRIES = [ImagePyramid.of(RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)) for shape in SHAPES]
SMOOTH = [
    ImagePyramid.of(cv2.GaussianBlur(np.asarray(entry.levels[0]), (0, 0), 2)) for entry in ENTRIES
]
DEEP = ImagePyramid.of(RNG.integers(0, 65536, (200, 200, 3), dtype=np.uint16))
PADDED = PatchConfig(image_px=200, overview_px=50, patch_px=24, clahe_clip=0.0, fit="pad")


def flipped(x: float, y: float, dx: float, dy: float) -> Augment:
    """Flips about the centre of the canvas, then a shift."""
    flips = np.array([[x, 0.0, 199 * (x < 0)], [0.0, y, 199 * (y < 0)]])
    shift = np.array([[1.0, 0.0, dx], [0.0, 1.0, dy]])
    return replace(IDENTITY, matrix=compose(flips, shift))


def cut(cutter: PatchCutter, *arrays: Any) -> torch.Tensor:
    return cutter.finish(cutter.begin(Cut(*arrays), CPU), CPU)


SIGNS = st.sampled_from([-1.0, 1.0])
SHIFTS = st.integers(-150, 150)


@settings(max_examples=30)
@given(SIGNS, SIGNS, SHIFTS, SHIFTS, st.integers(0, 2**32 - 1))
def test_copies_on_the_device_are_the_hosts_to_the_byte(x, y, dx, dy, seed):
    rng = np.random.default_rng(seed)
    canvases = [Canvas(e, PADDED, flipped(x, y, dx, dy)) for e in (*ENTRIES, DEEP)]
    corners = rng.integers(-60, 240, (len(canvases), 6, 2))
    is_cell = rng.random((len(canvases), 6)) < 0.7
    is_cell[:, 0] = True
    cutter = PatchCutter(range(len(canvases)))
    patches = cut(cutter, np.arange(len(canvases)), canvases, corners, is_cell).numpy()
    assert sorted(cutter.device_images.levels) == [(row, 0) for row in range(len(canvases))]
    for i, canvas in enumerate(canvases):
        np.testing.assert_array_equal(
            patches[i, is_cell[i]], canvas.patches(corners[i, is_cell[i]])
        )
        assert not patches[i, ~is_cell[i]].any()


@pytest.mark.parametrize("preset", [*PRESETS, "flips"])
@pytest.mark.parametrize(
    "sizes",
    [PADDED, replace(PADDED, fit="scale"), replace(PADDED, clahe_clip=3.0, clahe_grid=8)],
    ids=["pad", "scale", "equalised"],
)
def test_whatever_is_drawn_the_device_gives_what_the_host_gives(
    preset: str, sizes: PatchConfig
) -> None:
    config = PRESETS.get(preset, AugmentConfig(hflip=0.5, vflip=0.5))
    rng = np.random.default_rng(0)
    rows = np.arange(len(SMOOTH) * 8)
    entries = [SMOOTH[row % len(SMOOTH)] for row in rows]
    canvases = [Canvas(e, sizes, draw_augment(config, 200, rng)) for e in entries]
    corners = rng.integers(-12, 190, (len(rows), 5, 2))
    is_cell = rng.random((len(rows), 5)) < 0.8
    cutter = PatchCutter(rows.tolist())
    on_device = cut(cutter, rows, canvases, corners, is_cell).int()
    by_host = cut(PatchCutter(), rows, canvases, corners, is_cell).int()
    gaps = (on_device - by_host).abs()
    assert gaps.max() <= 2
    assert gaps.float().mean() < 0.05
    assert {row for row, _ in cutter.device_images.levels} == set(rows.tolist())
    assert by_host.max() > 100


def test_noise_is_drawn_by_the_host() -> None:
    change = replace(IDENTITY, noise="gaussian", noise_strength=0.1)
    canvases = [Canvas(SMOOTH[0], PADDED, change)]
    arrays = np.arange(1), canvases, np.full((1, 2, 2), 10), np.ones((1, 2), bool)
    cutter = PatchCutter([0])
    assert torch.equal(cut(cutter, *arrays), cut(PatchCutter(), *arrays))
    assert not cutter.device_images.levels


@pytest.mark.parametrize(("height", "width", "grid"), [(120, 200, 8), (61, 45, 7)])
def test_a_level_is_equalised_on_the_device_as_on_the_host(
    height: int, width: int, grid: int
) -> None:
    image = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
    entry, clahe = ImagePyramid.of(image), Clahe(3.0, grid)
    whole = entry.cut((0, 0, width, height), 0, clahe)  # makes all tables
    on_device = equalise(torch.from_numpy(image), entry.tables(0, clahe))
    np.testing.assert_array_equal(on_device.numpy(), whole)


def test_only_rows_to_be_trained_on_stay_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    cutter = PatchCutter([1])
    canvases = [Canvas(ENTRIES[0], PADDED), Canvas(ENTRIES[3], PADDED)]
    corners, is_cell = np.full((2, 2, 2), 10), np.ones((2, 2), bool)
    first = cut(cutter, np.arange(2), canvases, corners, is_cell)
    assert list(cutter.device_images.levels) == [(1, 0)]
    # from now on row 1 needs neither store nor host
    canvases[1].entry = replace(ENTRIES[3], levels=[np.zeros_like(v) for v in ENTRIES[3].levels])
    assert torch.equal(cut(cutter, np.arange(2), canvases, corners, is_cell), first)
    assert first[1].any()


@pytest.fixture
def pixels(tmp_path: Path) -> Pixels:
    contents = [f"{i:032x}" for i in range(4)]
    for content in contents:
        path = tmp_path / f"{content}.png"
        cv2.imwrite(str(path), RNG.integers(0, 256, (96, 96, 3), dtype=np.uint8))
        Store(str(tmp_path / "store")).build(content, path)
    return Pixels(Store((tmp_path / "store").as_uri(), str(tmp_path / "node")), contents)


def test_a_training_step_is_the_same_from_every_tier(
    pixels: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARED_MEMORY", tmp_path)
    task_class = load_task(SOURCE)
    demo: Any = task_class.presets()["demo"]
    sizes = PatchConfig(image_px=96, overview_px=32, patch_px=16, clahe_clip=0.0)
    config = replace(
        demo, patches=sizes, model=replace(demo.model, estimator="masked_loo", num_noise=20)
    )
    steps = {}
    for tier in ("disk", "memory", "device"):
        chosen, tier_pixels = choose_tier(tier, pixels, [0, 1, 2], CPU)
        assert chosen == tier
        torch.manual_seed(0)
        column = Column.of(["a", "b", "a", "b"])
        dataset = Dataset(
            column.values, column.codes, (), column, {}, {}, np.arange(4), tier_pixels
        )
        task: Any = task_class(config, dataset)
        if tier == "device":
            task.hold(np.arange(3))
        samples = BatchRows(np.arange(4), np.arange(4, dtype=np.uint64), True)
        batch = task_class.prepare(config, dataset, samples)
        task.forward(batch, 0.8)["loss"].backward()
        gradients = [p.grad for p in task.parameters() if p.grad is not None]
        steps[tier] = (batch, torch.cat([gradient.flatten() for gradient in gradients]))
        held = {row for row, _ in task.cutter.device_images.levels}
        assert held == ({0, 1, 2} if tier == "device" else set())
    assert len(list((tmp_path / "assay-copies").rglob("*.pixels"))) == 4
    for tier in ("memory", "device"):
        for name, values in steps["disk"][0].items():
            np.testing.assert_array_equal(steps[tier][0][name], values)
        assert torch.equal(steps[tier][1], steps["disk"][1])


def test_patches_begun_ahead_are_those_that_would_be_cut(pixels: Pixels) -> None:
    task_class = load_task(SOURCE)
    demo: Any = task_class.presets()["demo"]
    sizes = PatchConfig(image_px=96, overview_px=32, patch_px=16, clahe_clip=3.0, clahe_grid=4)
    config = replace(demo, patches=sizes)
    column = Column.of(["a", "b", "a", "b"])
    dataset = Dataset(column.values, column.codes, (), column, {}, {}, np.arange(4), pixels)
    task: Any = task_class(config, dataset).train()
    samples = BatchRows(np.arange(4), np.arange(4, dtype=np.uint64), True)
    batch, other = (task_class.prepare(config, dataset, samples) for _ in range(2))
    expected = task.forward(batch, 0.1)["loss"]
    task.ahead(other, 0.1)
    task.ahead(batch, 0.1)
    begun = [item[0] for item in task._begun]
    assert [begun[0] is other, begun[1] is batch] == [True, True]
    assert torch.equal(task.forward(batch, 0.1)["loss"], expected)
    assert [item[0] is other for item in task._begun] == [True]  # the next batch's wait
    task._begun.clear()
    task.ahead(batch, 0.9)  # the scorer has not decided yet
    assert not task._begun
    assert task.stopwatch.lap()["cut"] > 0


NEED = {"memory": 40, "device": 30}


@pytest.mark.parametrize(
    ("tier", "free", "expected"),
    [
        ("auto", {}, "disk"),
        ("auto", {"memory": 80}, "memory"),
        ("auto", {"memory": 79}, "disk"),
        ("auto", {"memory": 80, "device": 60}, "device"),
        ("auto", {"memory": 80, "device": 59}, "memory"),
        ("auto", {"memory": 79, "device": 59}, "disk"),
        ("disk", {"memory": 80, "device": 60}, "disk"),
        ("memory", {"memory": 40, "device": 60}, "memory"),
        ("memory", {"memory": 39}, "--tier disk"),
        ("memory", {}, "--tier disk"),
        ("device", {"device": 30}, "device"),
        ("device", {"device": 29}, "--tier disk"),
        ("device", {}, "device"),
    ],
)
def test_the_tier_is_the_one_asked_for_or_the_fastest_that_half_would_do(
    tier: Any, free: dict[str, int], expected: str
) -> None:
    if expected.startswith("--"):
        with pytest.raises(ResourceError, match=expected):
            fit_tier(tier, NEED, free)
    else:
        assert fit_tier(tier, NEED, free) == expected


def test_auto_copies_to_memory_from_far_away_only(
    pixels: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARED_MEMORY", tmp_path / "shared")
    (tmp_path / "shared").mkdir()
    far = replace(pixels, store=replace(pixels.store, cache=""))
    near = replace(pixels, store=Store(str(tmp_path / "store")))
    assert choose_tier("auto", pixels, [0], CPU) == ("disk", pixels)  # a cache was named
    assert choose_tier("auto", near, [0], CPU) == ("disk", near)
    chosen, copies = choose_tier("auto", far, [0], CPU)
    assert (chosen, copies.store.cache) == ("memory", str(tmp_path / "shared"))
    np.testing.assert_array_equal(copies[1].levels[0], near[1].levels[0])
    # what is there already needs no room any more
    monkeypatch.setattr(module, "_free_bytes", lambda device: {"memory": 0})
    assert choose_tier("auto", far, [0], CPU)[0] == "disk"
    for row in range(4):
        copies[row]
    assert choose_tier("auto", far, [0], CPU)[0] == "memory"
    usage = SimpleNamespace(free=0)
    monkeypatch.undo()
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    assert choose_tier("auto", far, [0], CPU) == ("disk", far)
