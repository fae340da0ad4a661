"""Any settings within their ranges end in training or in one sentence, and never in a traceback, a warning or NaN.

Settings are drawn for each task, mostly at the ends of their ranges; the task is built and trained for two updates, and
val is looked at. Another exception than an AssayError fails the test, and so does a warning.
"""

import math
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch
from annotated_types import Ge, GroupedMetadata, Gt, Le, Lt, MultipleOf
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.config import Settings
from assay.data.dataset import Dataset
from assay.data.images.pixels import Pixels
from assay.data.images.store import Store
from assay.data.manifest import Manifest
from assay.errors import AssayError
from assay.train.batches import batches
from assay.train.loop import Loop
from assay.train.source import TaskSource, load_task

TASKS = {
    path.stem: load_task(TaskSource.read(path))
    for path in sorted((Path(__file__).parents[2] / "tasks").glob("*.py"))
}
ROWS = {"train": np.arange(4), "val": np.arange(4, 7)}
SMALL: dict[str, dict[str, Any]] = {
    "fingerprint": {
        "patches": {"image_px": 64, "overview_px": 32, "patch_px": 16, "clahe_grid": 2},
        "model": {"k": 2, "warmup_k": 4, "num_noise": 2, "warmup": 0.5, "embed_dim": 16},
    },
    "segment": {
        "crops": {"crop_px": 32},
        "tiles": {"tile_px": 64, "overlap_px": 16},
        "model": {"encoder": "tu-test_efficientnet", "decoder_channels": (16, 8, 8)},
    },
    "casting": {
        "image": {"height_px": 32, "width_px": 32},
        "model": {"network": "test_efficientnet"},
        "decide": {"positive": "b"},
    },
    "extrusion": {
        "image": {"height_px": 32, "width_px": 32},
        "frames": {"time": ""},
        "decide": {"positive": "b"},
    },
    "pretrain": {"head": {"num_prototypes": 8, "hidden": 16}},
    "distill": {"image": {"height_px": 32, "width_px": 32}, "views": {"global_px": 32}},
    "anomaly": {
        "tiles": {"tile_px": 64, "overlap_px": 16},
        "model": {"backbone": "test_resnet", "stages": (1, 2), "memory": 10},
    },
}
"""What makes each task's smoke settings quick on seven small images."""
APART = (
    "data",
    "split",
    "parts",
    "bed",
    "castings",
    "nozzles",
    "units",
    "masks",
    "layers",
    "frames",
)
"""Sections that say which images there are."""
MOST = {
    **dict.fromkeys(("image_px", "height_px", "width_px", "tile_px", "crop_px", "overview_px"), 96),
    **dict.fromkeys(("patch_px", "global_px", "local_px", "clahe_grid", "epochs"), 32),
    **dict.fromkeys(("embed_dim", "d_inner", "head_width", "hidden", "bottleneck", "width"), 64),
    **dict.fromkeys(("num_layers", "head_depth", "depth", "num_global", "num_local", "d_steps"), 4),
    **dict.fromkeys(("num_noise", "num_steps", "registers", "memory", "num_prototypes"), 20),
    "decoder_channels": 16,
    "epochs": 2,
}
"""Greatest numbers that are quick; ranges reach further."""
NAMES = {
    "backbone": ("test_resnet", "test_vit", "texture_small", "32x1x8", "32x1x0", "none such"),
    "network": ("luna", "test_resnet", "test_vit", "cifar_resnet10-flat", "none such"),
    "trunk": ("small", "test_resnet", "test_vit", "none such"),
    "encoder": ("tu-test_resnet", "tu-test_vit", "none such"),
    "arch": ("unet", "fpn", "deeplabv3plus", "pspnet", "none such"),
    "mix_after": ((), ("network",), ("network.net.blocks.0",), ("none such",)),
}


def values_of(hint: Any, name: str, notes: tuple[Any, ...] = ()) -> list[Any]:
    """List values of a setting: every word, or both ends of a range, what is next to them and between; of texts none."""
    if name in NAMES:
        return list(NAMES[name])
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        of_ranges = [
            n for note in hint.__metadata__ if isinstance(note, GroupedMetadata) for n in note
        ]
        return values_of(parts[0], name, (*notes, *hint.__metadata__, *of_ranges))
    if origin in (Union, UnionType):
        return [value for part in parts for value in values_of(part, name, notes)]
    if origin is Literal:
        return list(parts)
    if origin is tuple and parts[-1] is Ellipsis:
        entries = values_of(parts[0], name)
        return [(), tuple(entries), *[(entry,) * num for entry in entries for num in (1, 3)]]
    if origin is tuple:
        each = [values_of(part, name) for part in parts]
        return [*zip(*each, strict=True), (each[0][0], *[values[-1] for values in each[1:]])]
    if hint is bool:
        return [False, True]
    return numbers_of(hint, name, notes) if hint in (int, float) else []


def numbers_of(kind: type, name: str, notes: tuple[Any, ...]) -> list[Any]:
    """List numbers of a range; some are outside an open end, where a sentence says so."""
    low = next(
        getattr(n, "ge", None) or getattr(n, "gt", 0) for n in notes if isinstance(n, Ge | Gt)
    )
    high = next(
        getattr(n, "le", None) or getattr(n, "lt", 0) for n in notes if isinstance(n, Le | Lt)
    )
    high = min(high, MOST.get(name, high))
    if kind is float:
        inner = math.nextafter(low, high), math.nextafter(high, low)
        return [low, inner[0], low + 1e-30, 1e-6, 0.5, 1.0, inner[1], high]
    step = next((n.multiple_of for n in notes if isinstance(n, MultipleOf)), 1)
    return [low, low + step, low + 2 * step, 7 * step, high]


def options_of(config: Settings) -> dict[str, list[Any]]:
    """List the values to draw of each setting of a task."""
    options: dict[str, list[Any]] = {}
    for field in fields(config):
        section = getattr(config, field.name)
        if field.name in APART or not isinstance(section, Settings):
            continue
        hints = get_type_hints(type(section), include_extras=True)
        for name in (each.name for each in fields(section)):
            options[f"{field.name}.{name}"] = values_of(hints[name], name)
    return {name: values for name, values in options.items() if values}


def changed(config: Any, changes: dict[str, Any]) -> Any:
    """Set some of a task's settings, all those of a section at once."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    news = {name: replace(getattr(config, name), **values) for name, values in sections.items()}
    return replace(config, **news)


def quick(name: str) -> Any:
    """Return a task's smoke settings, for two updates."""
    smoke: Any = TASKS[name].presets()["smoke"]
    epochs = min(smoke.train.epochs, 1)
    changes = {"train": {"epochs": epochs, "batch_size": 2, "eval_batch_size": 2}} | SMALL[name]
    if "quantize" in {field.name for field in fields(smoke)}:
        changes["quantize"] = {"variant": "none"}
    parts = {
        f"{s}.{name}": value for s, values in changes.items() for name, value in values.items()
    }
    return changed(smoke, parts)


QUICK = {name: quick(name) for name in TASKS}
OPTIONS = {name: options_of(config) for name, config in QUICK.items()}


@st.composite
def drawn(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """Draw a task and one to four of its settings."""
    name = draw(st.sampled_from(sorted(TASKS)))
    keys = st.lists(st.sampled_from(sorted(OPTIONS[name])), min_size=1, max_size=4, unique=True)
    return name, {key: draw(st.sampled_from(OPTIONS[name][key])) for key in draw(keys)}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Seven parts of two classes from two printers; every third has no mark."""
    folder = tmp_path_factory.mktemp("parts")
    store, rng = Store(str(folder / "store")), np.random.default_rng(0)
    contents = [f"{row:032x}" for row in range(7)]
    for row, content in enumerate(contents):
        image = cv2.resize(rng.integers(40, 200, (6, 6, 3), dtype=np.uint8), (72, 64))
        mask = np.zeros(image.shape[:2], np.uint8)
        mask[20 : 20 + 6 * (row % 3), 30:50] = 1
        for key, pixels in ((content, image), (f"{content}-mask", mask)):
            cv2.imwrite(str(folder / "x.png"), pixels)
            store.build(key, folder / "x.png")
    columns = {"id": contents, "image": contents, "label": [*"abababa"], "group": contents}
    table = pa.table(columns | {"domain.printer": [*"pqqppqp"]})
    pixels = Pixels(store, contents, {"label": [f"{content}-mask" for content in contents]})
    return replace(Dataset.of(Manifest(table), pixels, ROWS["train"]), mask_classes=("pore",))


def train(name: str, changes: dict[str, Any], dataset: Dataset, folder: Path) -> None:
    """Build a task and train it for as long as its settings say, which is two updates unless they change that."""
    kind, config = TASKS[name], changed(QUICK[name], changes)
    torch.manual_seed(0)
    task = kind(config, dataset)
    task.begin(ROWS["train"])
    Loop(
        task,
        task,
        dict(ROWS),
        lambda steps, train: batches(kind, config, dataset, steps, train),
        folder,
    ).fit()


@settings(max_examples=60)
@given(drawn())
def test_settings_end_in_training_or_in_a_sentence(dataset, tmp_path_factory, of_task):
    name, changes = of_task
    with suppress(AssayError):
        train(name, changes, dataset, tmp_path_factory.mktemp("run"))


FOUND: list[tuple[str, dict[str, Any], str]] = [
    ("extrusion", {"algorithm.name": "dann-source"}, ""),
    ("extrusion", {"algorithm.name": "groupdro", "algorithm.eta": 1e6}, ""),
    ("extrusion", {"algorithm.name": "mixup", "algorithm.alpha": 1e-300}, "algorithm.alpha"),
    ("extrusion", {"train.batch_size": 1_000_000}, ""),
    ("fingerprint", {"model.num_heads": 3}, "model.num-heads"),
    ("fingerprint", {"model.guide_temperature": 1e-300}, "model.guide-temperature"),
    ("fingerprint", {"augment.scale_p": 1.0, "augment.scale_low": 1e-300}, "augment.scale-low"),
    ("fingerprint", {"model.backbone": "test_vit", "patches.patch_px": 17}, "does not take images"),
    ("distill", {"model.backbone": "test_vit", "views.global_px": 40}, "does not take images"),
    ("pretrain", {"teacher.temperature": 1e-300}, "teacher.temperature"),
    ("pretrain", {"model.backbone": "32x1x0"}, "give a vision transformer"),
]


@pytest.mark.parametrize(("name", "changes", "says"), FOUND)
def test_what_was_found_stays_mended(name, changes, says, dataset, tmp_path):
    if not says:
        train(name, changes, dataset, tmp_path)
        return
    with pytest.raises(AssayError, match=says):
        train(name, changes, dataset, tmp_path)


def test_a_mask_of_logits_that_are_not_finite_is_a_sentence(dataset: Dataset) -> None:
    task = TASKS["segment"](QUICK["segment"], dataset).eval()
    torch.nn.init.constant_(next(task.net.parameters()), math.nan)
    with torch.no_grad(), pytest.raises(AssayError, match=r"not finite.*lower --optim\.lr"):
        task.levels(0)
