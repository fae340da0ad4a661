"""Settings without effect: what is said to have none has none, and what is not said to have some has one.

Settings are drawn, one of them is given another value, and all that a task computes from them is compared to
the last bit: weights, batches, losses and gradients early, halfway and late in a run, rates, answers.
"""

import hashlib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from assay.config import Settings
from assay.data.dataset import Dataset
from assay.data.images.pixels import Pixels
from assay.data.images.store import Store
from assay.data.inputs.augment import AugmentConfig
from assay.data.inputs.crops import CropConfig
from assay.data.inputs.patches import PatchConfig
from assay.data.inputs.tiles import TileConfig
from assay.data.manifest import Manifest
from assay.errors import ConfigError
from assay.nn.optim import OptimConfig, build_optimizer, set_rates
from assay.train.patch_network import PatchModelConfig
from assay.train.source import TaskSource, load_task
from assay.train.task import BatchRows

TASKS = Path(__file__).parents[2] / "tasks"
FINGERPRINT = load_task(TaskSource.read(TASKS / "fingerprint.py"))
SEGMENT = load_task(TaskSource.read(TASKS / "segment.py"))
PRETRAIN = load_task(TaskSource.read(TASKS / "pretrain.py"))
ROWS = np.arange(4)
KEYS = np.arange(4, dtype=np.uint64) + np.uint64(7)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Images of two classes that differ in brightness from place to place, and masks of two kinds."""
    folder = tmp_path_factory.mktemp("images")
    store = Store(str(folder / "store"))
    rng = np.random.default_rng(0)
    contents = [f"{i:032x}" for i in range(4)]
    for content in contents:
        image = cv2.resize(rng.integers(0, 90, (6, 6, 3), dtype=np.uint8), (96, 80))
        image = image + rng.integers(0, 90, image.shape, dtype=np.uint8)
        mask = np.zeros(image.shape[:2], np.uint8)
        mask[20:40, 30:60], mask[50:60, 5:25] = 1, 2
        for key, drawn in ((content, image), (f"{content}-mask", mask)):
            cv2.imwrite(str(folder / "x.png"), drawn)
            store.build(key, folder / "x.png")
    columns = {"id": contents, "image": contents, "label": ["a", "b"] * 2, "group": contents}
    pixels = Pixels(store, contents, {"label": [f"{content}-mask" for content in contents]})
    table = Dataset.of(Manifest(pa.table(columns)), pixels)
    return replace(table, mask_classes=("pore", "streak"))


def computed(kind: Any, config: Any, dataset: Dataset) -> str:
    """A hash of all that follows from settings."""
    digest = hashlib.sha256()

    def take(*values: Any) -> None:
        for value in values:
            array = value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
            digest.update(np.ascontiguousarray(array).tobytes())

    torch.manual_seed(0)
    task = kind(config, dataset)
    take(*task.parameters())
    batch = kind.prepare(config, dataset, BatchRows(ROWS, KEYS, True))
    take(*batch.values())
    for progress in (0.0, 0.45, 0.95):
        torch.manual_seed(1)
        task.zero_grad()
        task.train()(batch, progress)["loss"].backward()
        take(*(p.grad for p in task.parameters() if p.grad is not None))
        prefixes = task.param_groups(progress)
        optimizer = build_optimizer(task, config.optim, prefixes)
        set_rates(optimizer, config.optim, prefixes, progress)
        take(*([g["lr"], g["weight_decay"], len(g["params"])] for g in optimizer.param_groups))
        take(config.optim.grad_clip, config.optim.optimizer == "lamb")
    judged = kind.prepare(config, dataset, BatchRows(ROWS, KEYS, False))
    with torch.no_grad():
        task.eval()
        outputs = task.predict(judged) | task.predict_once(judged)
    take(*outputs.values())
    return digest.hexdigest()


def other_value(settings: Settings, name: str) -> Any:
    """Another value of a field, far enough away to be seen."""
    value = getattr(settings, name)
    if name in OTHERS:
        return next(other for other in OTHERS[name] if other != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, float):
        return 1.0 if value != 1.0 else 0.0
    raise AssertionError(f"{name} needs other values")


OTHERS: dict[str, tuple[Any, ...]] = {
    "image_px": (64, 48),
    "fit": ("pad", "scale"),
    "overview_px": (32, 24),
    "patch_px": (16, 24),
    "clahe_clip": (3.0, 0.0),
    "clahe_grid": (2, 4),
    "normalise": ("constants", "image"),
    "mean": ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5)),
    "std": ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5)),
    "bright": (0.4, 0.1),
    "rotation_deg": (90.0, 45.0),
    "noise_kinds": (("gaussian",), ("salt_pepper",)),
    "mode": ("dps", "grid"),
    "k": (2, 4),
    "ips_chunk": (3, 32),
    "trunk": ("test_resnet", "small"),
    "estimator": ("score_function", "masked_loo"),
    "num_noise": (2, 5),
    "sigma": (0.9, 0.4),
    "sigma_final": (0.8, 0.3),
    "warmup_k": (8, 4),
    "backbone": ("test_resnet", "texture_small"),
    "norm": ("batch", "group"),
    "kinds": (("blur",), ("noise", "jpeg")),
    "trainable_blocks": (1, -1),
    "head": ("linear", "mlp"),
    "head_depth": (2, 1),
    "head_width": (7, 9),
    "head_norm": ("layer", "none"),
    "embed_dim": (16, 32),
    "num_layers": (2, 1),
    "num_heads": (2, 4),
    "d_inner": (24, 40),
    "crop_px": (32, 64),
    "degrees": (90.0, 15.0),
    "hue": (0.3, 0.1),
    "tile_px": (64, 96),
    "size": ("fit", "fixed"),
    "overlap_px": (8, 0),
    "arch": ("fpn", "unet"),
    "encoder": ("tu-test_resnet", "tu-test_efficientnet"),
    "decoder_channels": ((8, 8, 8), (16, 8, 8)),
    "loss": ("dice", "bce"),
    "over": ("batch", "image"),
    "pos_weight": (3.0, 1.0),
    "optimizer": ("lamb", "adamw"),
    "decays": ("all", "weights"),
    "schedule": ("cosine", "onecycle"),
    "start_factor": (0.5, 0.1),
    "final_factor": (0.5, 0.1),
    "scale": (0.4, 0.2),
    "scale_low": (0.3, 0.5),
    "brightness_low": (0.3, 0.5),
    "contrast_low": (0.3, 0.5),
    "gamma_low": (0.3, 0.5),
    "saturation_low": (0.3, 0.5),
    "resample_low": (0.3, 0.5),
    "contrast_high": (1.9, 1.7),
    "brightness_high": (1.9, 1.7),
    "gamma_high": (1.9, 1.7),
    "saturation_high": (1.9, 1.7),
    "scale_high": (1.9, 1.7),
    "resample_high": (1.9, 1.7),
    "num_global": (3, 2),
    "num_local": (1, 2),
    "global_px": (48, 32),
    "local_px": (24, 16),
    "global_area": ((0.9, 1.0), (0.4, 0.5)),
    "local_area": ((0.3, 0.32), (0.1, 0.2)),
    "blur_global": ((0.0, 0.0), (1.0, 1.0)),
    "num_prototypes": (24, 16),
    "hidden": (24, 32),
    "bottleneck": (8, 12),
    "centering": ("sinkhorn_knopp", "centering"),
    "mask_ratio": ((0.4, 0.5), (0.2, 0.3)),
}
UNSEEN = {
    # a place in a whole that these small images or nets do not show
    *("patches.bright", "model.ips_chunk", "model.mode"),
    # rates have to be compared where they are used: in warm-up, at start or at the end
    *("optim.start_factor", "optim.schedule", "optim.warmup", "optim.optimizer"),
    # between updates, and between images of one part
    *("teacher.momentum", "teacher.final_momentum", "views.cross_view"),
    *("model.spacing", "augment.noise_kinds", "crops.around", "tiles.overlap_px", "model.norm"),
    # an image of up to six tiles goes through whole, however it would be cut
    "tiles.size",
}
"""Not required to change something in each draw."""


def check(kind: Any, config: Any, section: str, name: str, dataset: Dataset) -> None:
    """Change one setting: what is computed changes if, and only if, it is not said to have no effect."""
    before = getattr(config, section)
    key = f"{section}.{name}"
    is_idle = key in config.idle()
    try:
        after = replace(before, **{name: other_value(before, name)})
        changed = replace(config, **{section: after})
        same = computed(kind, config, dataset) == computed(kind, changed, dataset)
    except ConfigError:
        assume(False)
    if is_idle:
        assert same, f"{key} is said to have no effect ({config.idle()[key]}) and has one"
    elif key not in UNSEEN:
        assert not same, f"{key} changes nothing and nobody says so: {config}"


def choice(**values: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Fields that are drawn from a few values each, or fixed."""
    each = {k: st.sampled_from(v) if isinstance(v, list) else st.just(v) for k, v in values.items()}
    return st.fixed_dictionaries(each)


RANGES = {"low": [0.6, 1.0], "high": [1.4, 1.0]}
AUGMENTS = choice(
    **{
        f"{group}_p": [0.0, 1.0] for group in ("rotation", "scale", "exposure", "resample", "noise")
    },
    **{
        f"{name}_{end}": values
        for name in ("scale", "brightness", "contrast", "gamma", "saturation", "resample")
        for end, values in RANGES.items()
    },
    rotation_deg=[0.0, 45.0],
    noise_max=[0.0, 0.3],
)
OPTIMS = choice(
    schedule=["onecycle", "cosine", "exponential", "constant"],
    warmup=[0.0, 0.3],
    final_factor=[0.001, 0.1],
)
PATCHES = choice(
    image_px=64,
    overview_px=32,
    patch_px=16,
    clahe_clip=[0.0, 3.0],
    clahe_grid=2,
    normalise=["image", "imagenet", "constants"],
)
MODELS = choice(
    mode=["dps", "dps", "ips", "random", "grid"],
    k=4,
    trunk="small",
    estimator=["score_function", "masked_loo", "plain", "diagonal"],
    num_noise=3,
    sigma=0.5,
    sigma_final=0.2,
    warmup=[0.0, 0.4, 1.0],
    warmup_k=4,
    alone=[0.0, 1.0],
    guide=[0.0, 1.0],
    backbone="texture_small",
    head=["none", "mlp"],
    head_width=9,
    embed_dim=16,
    num_layers=1,
    num_heads=4,
    d_inner=24,
    dropout=0.0,
    trainable_blocks=[-1, 0],
)
PATCH_SETTINGS = [
    (section, field.name)
    for section, kind in (
        ("patches", PatchConfig),
        ("augment", AugmentConfig),
        ("model", PatchModelConfig),
        ("optim", OptimConfig),
    )
    for field in fields(kind)
    if field.name not in ("weights", "scorer_weights")  # files, of which there are none here
]


@settings(max_examples=40)
@given(PATCHES, AUGMENTS, MODELS, OPTIMS, st.sampled_from(PATCH_SETTINGS))
def test_settings_of_patches_act_or_are_said_not_to(
    dataset, patches, augment, model, optim, setting
):
    demo: Any = FINGERPRINT.presets()["demo"]
    config = replace(
        demo,
        patches=PatchConfig(**patches),
        augment=AugmentConfig(**augment),
        model=PatchModelConfig(**model),
        optim=OptimConfig(**optim),
    )
    check(FINGERPRINT, config, *setting, dataset)


CROPS = choice(crop_px=64, affine=[0.0, 1.0], degrees=[0.0, 15.0], scale=[0.0, 0.2], noise=0.5)
# an image of these goes through whole where tiles fit it, whatever their size and overlap
TILES = choice(tile_px=96, overlap_px=0, size="fixed", normalise=["image", "imagenet", "constants"])
NETS = choice(
    encoder="tu-test_efficientnet",
    decoder_channels=(16, 8, 8),
    loss=["dice", "bce", "focal", "tversky", "combined"],
)
MASK_SETTINGS = [
    (section, field.name)
    for section, kind in (
        ("crops", CropConfig),
        ("tiles", TileConfig),
        ("model", type(SEGMENT.presets()["demo"].model)),
    )
    for field in fields(kind)
    if field.name not in ("weights", "mode")
]


@settings(max_examples=20)
@given(CROPS, TILES, NETS, st.sampled_from(MASK_SETTINGS))
def test_settings_of_masks_act_or_are_said_not_to(dataset, crops, tiles, model, setting):
    demo: Any = SEGMENT.presets()["demo"]
    config = replace(
        demo,
        crops=CropConfig(**crops),
        tiles=TileConfig(**tiles),
        model=type(demo.model)(**model),
    )
    check(SEGMENT, config, *setting, dataset)


VIEWS = choice(
    global_px=32, local_px=16, num_global=[2, 3], num_local=[0, 2], blur_global=(0.5, 0.5)
)
LOSSES = choice(
    dino=[0.0, 1.0],
    ibot=[0.0, 1.0],
    koleo=[0.0, 0.1],
    mask_probability=[0.0, 0.7],
    centering=["centering", "sinkhorn_knopp"],
)
DISTILLATION_SETTINGS = [
    (section, field.name)
    for section in ("views", "head", "loss", "teacher", "rates")
    for field in fields(getattr(PRETRAIN.presets()["smoke"], section))
]


@settings(max_examples=20)
@given(
    VIEWS,
    LOSSES,
    choice(warmup=[0.0, 0.3]),
    choice(weight_decay=[0.0, 0.04], schedule="cosine"),
    st.booleans(),
    st.sampled_from(DISTILLATION_SETTINGS),
)
def test_settings_of_pretraining_act_or_are_said_not_to(
    dataset, views, loss, teacher, optim, separate, setting
):
    smoke: Any = PRETRAIN.presets()["smoke"]
    try:
        config = replace(
            smoke,
            views=replace(smoke.views, **views),
            loss=replace(smoke.loss, **loss),
            teacher=replace(smoke.teacher, **teacher),
            optim=OptimConfig(**optim),
            head=replace(smoke.head, separate=separate),
        )
    except ConfigError:
        assume(False)
    check(PRETRAIN, config, *setting, dataset)
