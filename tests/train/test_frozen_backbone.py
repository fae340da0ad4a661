"""A backbone with weights is frozen for a share of the run: it does not move, and what joins its features learns."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from assay.data.dataset import Dataset
from assay.data.inputs.patches import PatchConfig
from assay.train.batches import batches
from assay.train.loop import Loop
from assay.train.patch_network import PatchModelConfig
from assay.train.recipes import recipe_of_parts
from assay.train.source import TaskSource, load_task

FINGERPRINT = load_task(TaskSource.read(Path(__file__).parents[2] / "tasks" / "fingerprint.py"))
DEMO = FINGERPRINT.presets()["demo"]
UPDATES = 8


@pytest.fixture(scope="module")
def dataset(dataset_of, tmp_path_factory) -> Dataset:
    """Bright and dark images, four of each."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 90, (64, 64, 3)).astype(np.uint8) + 120 * (i % 2) for i in range(8)]
    images = [image.astype(np.uint8) for image in images]
    folder = tmp_path_factory.mktemp("images")
    return dataset_of(folder, images, ("dark", "bright"), np.arange(8) % 2, np.arange(8))


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """Weights of a small network, in a file."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "test_resnet.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), file)
    return str(file)


def moves(folder: Path, dataset: Dataset, **model: object) -> dict[str, list[bool]]:
    """Train, and tell of each update what has moved in it."""
    patches = PatchConfig(image_px=64, overview_px=32, patch_px=32, clahe_clip=0.0, bright=0.0)
    fields = {"backbone": "test_resnet", "norm": "group", "warmup": 0.5, "warmup_k": 4, **model}
    config = replace(
        DEMO,
        patches=patches,
        model=replace(DEMO.model, **fields),
        train=replace(DEMO.train, epochs=UPDATES, batch_size=8, val_every=UPDATES, patience=0),
    )
    moved: dict[str, list[bool]] = {"backbone": [], "scorer": [], "aggregator": []}

    class Watched(FINGERPRINT):
        before: dict[str, torch.Tensor]

        def forward(self, batch, progress, phase="main"):
            self.before = {name: p.detach().clone() for name, p in self.named_parameters()}
            return super().forward(batch, progress, phase)

        def after_step(self, progress: float) -> None:
            changed = {
                name for name, p in self.named_parameters() if not torch.equal(p, self.before[name])
            }
            for part, of_part in moved.items():
                of_part.append(any(name.startswith(f"{part}.") for name in changed))

    torch.manual_seed(0)
    task = Watched(config, dataset)
    stream = lambda steps, train: batches(FINGERPRINT, config, dataset, steps, train)  # noqa: E731
    rows = {"train": np.arange(8), "val": np.arange(8)}
    Loop(task, task, rows, stream, folder, None).fit()
    return moved


def test_it_moves_once_its_share_of_the_run_is_over_and_all_else_from_the_start(
    tmp_path, dataset, weights
):
    moved = moves(tmp_path, dataset, weights=weights, backbone_frozen=0.5)
    assert moved["backbone"] == [False] * 4 + [True] * 4
    assert moved["scorer"] == moved["aggregator"] == [True] * UPDATES


def test_it_moves_from_the_start_where_nothing_is_to_be_kept(tmp_path, dataset, weights):
    always = [True] * UPDATES
    assert moves(tmp_path / "0", dataset, weights=weights)["backbone"] == always
    scratch = {"backbone_frozen": 0.5}
    assert moves(tmp_path / "1", dataset, **scratch)["backbone"] == always
    assert PatchModelConfig(**scratch).idle()["backbone_frozen"] == "model.weights is none"


def test_patience_waits_until_it_learns(dataset, weights):
    """Else random patches, which have no warm-up, would stop before their backbone has learnt anything."""
    model = replace(
        DEMO.model, backbone="test_resnet", mode="random", weights=weights, backbone_frozen=0.7
    )
    begins = FINGERPRINT(replace(DEMO, model=model), dataset).patience_begins
    assert begins == pytest.approx(0.7)
    for same in (replace(model, weights="none"), replace(model, backbone_frozen=0.0)):
        assert FINGERPRINT(replace(DEMO, model=same), dataset).patience_begins == 0
    chosen = replace(model, mode="dps", warmup=0.9)
    assert FINGERPRINT(replace(DEMO, model=chosen), dataset).patience_begins == pytest.approx(0.9)


def test_own_images_begin_with_what_the_weights_know():
    model = recipe_of_parts(DEMO).model
    assert model.backbone_frozen == model.warmup > 0
    assert not model.freezes_backbone(model.warmup)
