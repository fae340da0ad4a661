"""What only this task promises: order of operations, exact mixing, phases of the run, ways of selecting."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch

from assay.bundle.card import Card
from assay.bundle.seal import seal
from assay.data.dataset import Dataset
from assay.data.images.pixels import Pixels
from assay.data.images.store import Store
from assay.data.inputs.augment import AugmentConfig
from assay.data.inputs.normalise import EPS
from assay.data.inputs.patches import Canvas, PatchConfig, cell_corners
from assay.data.manifest import Manifest
from assay.errors import ConfigError
from assay.metrics.decide import Decision
from assay.nn.selection import selection_entropy
from assay.nn.topk import draw_noise, perturbed_topk
from assay.train.patches import MIN_ENTROPY
from assay.train.source import TaskSource, load_task
from assay.train.task import BatchRows, Task

SCRIPT = Path(__file__).parents[2] / "tasks" / "fingerprint.py"
SOURCE = TaskSource.read(SCRIPT)
SIZES = PatchConfig(image_px=64, overview_px=32, patch_px=16, clahe_clip=0.0)


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> Pixels:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    contents = [f"{i:032x}" for i in range(4)]
    for content in contents:
        path = folder / f"{content}.png"
        cv2.imwrite(str(path), rng.integers(40, 120, (64, 64, 3), dtype=np.uint8))
        Store(str(folder / "store")).build(content, path)
    return Pixels(Store(str(folder / "store")), contents)


def make(pixels: Pixels, changes: dict[str, Any] | None = None, **fields: Any) -> Any:
    task = load_task(SOURCE)
    demo: Any = task.presets()["demo"]
    torch.manual_seed(0)
    model = replace(demo.model, **{"warmup_k": 8, **(changes or {})})
    config = replace(demo, patches=SIZES, model=model, **fields)
    ids = pixels.contents
    columns = {"id": ids, "image": ids, "label": ["a", "b", "a", "b"], "group": ids}
    return task(config, Dataset.of(Manifest(pa.table(columns)), pixels))


def batch_of(task: Task, train: bool = True) -> Any:
    rows = np.arange(4)
    keys = np.arange(4, dtype=np.uint64) + np.uint64(7)
    return type(task).prepare(task.config, task.dataset, BatchRows(rows, keys, train))


def test_exposure_comes_before_normalisation_and_never_after(pixels: Pixels) -> None:
    bright = AugmentConfig(exposure_p=1.0, brightness_low=1.8, brightness_high=1.8)
    task = make(pixels, augment=bright)
    batch = batch_of(task)
    cells = np.full((4, 1), 35)
    got = task.train().cut(batch, cells).numpy()
    corners = cell_corners(cells[0], task.grid, SIZES)
    plain = np.stack([Canvas(pixels[i], SIZES).patches(corners) for i in range(4)]).astype(float)
    mean, std = (batch[n].reshape(4, 1, 1, 1, 3) for n in ("mean", "std"))
    before = (np.rint(np.clip(1.8 * plain, 0, 255)) / 255 - mean) / (std + EPS)
    after = 1.8 * (plain / 255 - mean) / (std + EPS)
    np.testing.assert_allclose(got, before.transpose(0, 1, 4, 2, 3), atol=1e-4)
    # the planted mistake would be seen
    assert np.abs(got - after.transpose(0, 1, 4, 2, 3)).max() > 0.1


def test_the_mixture_of_active_cells_is_the_mixture_of_all_cells(pixels: Pixels) -> None:
    task = make(pixels, {"estimator": "masked_loo", "num_noise": 20, "sigma": 0.05})
    batch = batch_of(task)
    scores = task.scores(batch).detach()
    num_cells = scores.shape[1]
    noise = draw_noise([1, 2, 3, 4], 20, num_cells)
    chosen = perturbed_topk(scores, 4, 0.05, [1, 2, 3, 4], 20)
    patches = task.cut(batch, chosen.cells.numpy())
    sparse = torch.einsum("bkm,bmchw->bkchw", chosen.weights, patches)
    everywhere = np.tile(np.arange(num_cells), (4, 1))
    picked = (scores[:, None] + 0.05 * noise).topk(4, -1).indices.sort(-1).values
    indicators = torch.nn.functional.one_hot(picked, num_cells).float().mean(1)
    dense = torch.einsum("bkm,bmchw->bkchw", indicators, task.cut(batch, everywhere))
    torch.testing.assert_close(sparse, dense, atol=1e-5, rtol=1e-5)


def test_patches_are_channels_last_mixed_or_not_and_mixed_as_they_are(pixels: Pixels) -> None:
    task = make(pixels, {"estimator": "masked_loo", "num_noise": 20, "warmup": 0.5})
    shown: list[torch.Tensor] = []
    embed = task.embed
    task.embed = lambda patches: shown.append(patches) or embed(patches)
    batch = batch_of(task)
    for progress in (0.0, 0.9):  # random patches, then mixtures
        task.train()(batch, progress)
    for patches in shown:
        assert patches.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    scores, sigma = task.scores(batch).detach(), task.config.model.sigma_at(0.8)
    keys = batch["key"].tolist()
    chosen = perturbed_topk(scores, 4, sigma, keys, 20, "masked_loo", task.apart)
    patches = task.cut(batch, chosen.cells.numpy())
    expected = chosen.weights @ patches.flatten(2)
    torch.testing.assert_close(shown[1], expected.view_as(shown[1]))


@pytest.mark.parametrize("estimator", ["score_function", "masked_loo", "plain", "diagonal"])
def test_the_scorer_learns_under_every_estimator(pixels: Pixels, estimator: str) -> None:
    task = make(pixels, {"estimator": estimator, "alone": 0.0, "num_noise": 8})
    made = task(batch_of(task), 0.9)
    made["loss"].backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in task.scorer.parameters())


def test_the_guide_teaches_the_scorer_in_the_warm_up_and_the_baseline_has_none(
    pixels: Pixels,
) -> None:
    for changes, learns in (({}, True), ({"guide": 0.0}, False), ({"mode": "random"}, False)):
        task = make(pixels, changes)
        task(batch_of(task), 0.0)["loss"].backward()
        moved = any(p.grad is not None and p.grad.abs().max() > 0 for p in task.scorer.parameters())
        assert moved == learns


def test_the_noise_falls_over_the_run(pixels: Pixels) -> None:
    task = make(pixels)
    assert "sigma" not in task(batch_of(task), 0.0)
    sigmas = [float(task(batch_of(task), p)["sigma"]) for p in (0.65, 0.75, 0.9, 0.999)]
    assert sigmas == sorted(sigmas, reverse=True)
    assert sigmas[0] > 0.09
    assert sigmas[-1] < 0.006


def test_judging_is_hard_deterministic_and_unaugmented(pixels: Pixels) -> None:
    task = make(pixels, augment=load_task(SOURCE).presets()["readme"].augment).eval()
    batch = batch_of(task, train=False)
    first, second = task.predict(batch), task.predict(batch)
    assert all(torch.equal(first[name], second[name]) for name in first)
    best = task.scores(batch).argsort(dim=1, descending=True, stable=True)[:, :4].sort(1).values
    assert torch.equal(first["cells"], best)
    boxes = first["boxes"].reshape(4, 4, 4).numpy()
    corners = np.stack([cell_corners(c.numpy(), task.grid, SIZES) for c in best])
    np.testing.assert_allclose(boxes[..., :2], corners)
    np.testing.assert_allclose(boxes[..., 2:], corners + 16)


def test_random_patches_do_not_depend_on_seed_or_batch_when_judged(pixels: Pixels) -> None:
    one = make(pixels, {"mode": "random"})
    other = make(pixels, {"mode": "random"}, train=replace(one.config.train, seed=5))
    cells = [batch_of(t, train=False)["random_cells"] for t in (one, other)]
    np.testing.assert_array_equal(cells[0], cells[1])
    assert not np.array_equal(batch_of(one)["random_cells"], cells[0])


def test_one_baseline_serves_all_ways_of_selecting(pixels: Pixels) -> None:
    task = load_task(SOURCE)
    demo: Any = task.presets()["demo"]
    noise = {"estimator": "plain", "num_noise": 9, "sigma": 0.3, "sigma_final": 0.2}
    other = noise | {"warmup": 0.1, "guide": 0.0, "guide_temperature": 2.0, "scorer_lr": 3.0}
    other |= {"scorer_weights": "hub", "spacing": 0.5, "ips_chunk": 7}
    # of the head and the weights that are not there
    absent = {"head_depth", "head_width", "head_norm", "head_dropout", "backbone_frozen"}
    assert set(other) | absent == set(task.baselines(demo)["random"].model.idle())
    changed = replace(demo, model=replace(demo.model, **other))
    assert task.baselines(changed) == task.baselines(demo)
    # and they have no effect on it: the same loss and the same gradients
    losses = []
    for changes in ({}, other):
        baseline = make(pixels, {**changes, "mode": "random"})
        loss = baseline(batch_of(baseline), 0.6)["loss"]
        loss.backward()
        grads = [p.grad.norm() for p in baseline.parameters() if p.grad is not None]
        losses.append([loss.item(), *map(float, grads)])
    assert losses[0] == losses[1]


SELECTORS: list[dict[str, Any]] = [
    {"mode": "dps", "spacing": 1.0},
    {"mode": "ips", "ips_chunk": 5},
    {"mode": "random"},
    {"mode": "grid"},
    {"mode": "all"},
]


@pytest.mark.parametrize("changes", SELECTORS, ids=lambda changes: changes["mode"])
def test_a_raw_file_served_gives_what_training_computes(
    pixels: Pixels, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Every selector trains, and its bundle chooses and answers from the file as it does."""
    task = make(pixels, changes)
    made = task.train()(batch_of(task), 0.9)
    made["loss"].backward()
    assert all(p.grad is not None for p in task.backbone.parameters())
    with torch.no_grad():
        expected = task.eval().predict(batch_of(task, train=False))
    plain = {"costs": None, "positive": None, "threshold": None}
    decision = Decision(temperature=1.0, coverage=0.9, quantile=0.9, num=9, num_groups=9, **plain)
    card = Card(classes=["a", "b"], pipeline=task.export(tmp_path, {}), decision=decision)
    files = [pixels.store.here.parent / f"{content}.png" for content in pixels.contents]
    bundle = seal(tmp_path, card, files[0])
    for i, file in enumerate(files):
        answer = bundle.predict(file)
        probs = expected["logits"][i].softmax(0).numpy()
        np.testing.assert_allclose(list(answer.probs.values()), probs, atol=1e-4)
        np.testing.assert_allclose(answer.boxes.ravel(), expected["boxes"][i].numpy(), atol=1e-3)
        np.testing.assert_allclose(answer.attn, expected["attn"][i].numpy(), atol=1e-4)
    if changes["mode"] == "dps":
        rows, columns = np.divmod(expected["cells"].numpy(), task.grid)
        gaps = np.maximum(
            abs(rows[:, :, None] - rows[:, None]), abs(columns[:, :, None] - columns[:, None])
        )
        assert (
            gaps[:, ~np.eye(4, dtype=bool)].min() * (SIZES.image_px // task.grid) >= SIZES.patch_px
        )


def test_iterative_selection_keeps_what_the_aggregator_attends_to(pixels: Pixels) -> None:
    """A memory of 4 and 3 new patches at a time, against all patches attended to in the same steps."""
    task = make(pixels, {"mode": "ips", "ips_chunk": 3}).eval()
    batch = batch_of(task, train=False)
    with torch.no_grad():
        chosen = task.predict(batch)["cells"].numpy()
        for i in range(4):
            one = {name: values[i : i + 1] for name, values in batch.items()}
            memory = task.tiles[:4]
            for start in range(4, len(task.tiles), 3):
                cells = np.concatenate([memory, task.tiles[start : start + 3]])
                attn = task.aggregator(task.embed(task.cut(one, cells[None])))[1][0]
                memory = cells[np.sort(attn.argsort(descending=True)[:4].numpy())]
            np.testing.assert_array_equal(chosen[i], memory)
    assert task.train().backbone.training  # and selecting leaves the mode alone
    task(batch_of(task), 0.0)
    assert task.backbone.training
    assert task.aggregator.training


def test_blanks_hide_patches_wherever_they_are_seen(pixels: Pixels) -> None:
    task = make(pixels, {"trunk": "small"}).eval()
    batch = batch_of(task, train=False)
    apart, touching = 0, task.grid + 2
    blank = {**batch, "blank": np.full((4, 1), touching)}
    cells = np.tile([apart, touching, touching + 1], (4, 1))
    before, after = task.cut(batch, cells), task.cut(blank, cells)
    left, top = cell_corners(np.array([touching]), task.grid, SIZES)[0]
    for i, cell in enumerate(cells[0]):
        x, y = cell_corners(np.array([cell]), task.grid, SIZES)[0]
        for row in range(SIZES.patch_px):
            for column in range(SIZES.patch_px):
                hidden = 0 <= y + row - top < 16 and 0 <= x + column - left < 16
                expected = (
                    0 * before[:, i, :, row, column] if hidden else before[:, i, :, row, column]
                )
                assert torch.equal(after[:, i, :, row, column], expected)
    assert not torch.equal(task.scores(batch), task.scores(blank))


def test_the_deletion_test_looks_for_evidence_elsewhere(pixels: Pixels) -> None:
    task = make(pixels).eval()
    batch = batch_of(task, train=False)
    chosen = task.predict(batch)["cells"].numpy()
    found = task.predict_once(batch)
    expected = {"chosen": chosen, "random": batch["random_cells"][:, :4]}
    for name, blank in expected.items():
        again = task.predict({**batch, "blank": blank})
        assert torch.equal(found[f"logits_without_{name}"], again["logits"])
    assert make(pixels, {"mode": "random"}).eval().predict_once(batch) == {}


IMPOSSIBLE: list[dict[str, Any]] = [
    {"k": 65},
    {"warmup_k": 80},
    {"num_noise": 1},
    {"num_noise": 1, "estimator": "masked_loo"},
    {"positions": True},
    {"positions": True, "alone": 0.0, "mode": "ips"},
    {"norm": "frozen", "backbone": "test_resnet"},
    {"norm": "frozen", "trunk": "test_resnet"},
    {"trunk": "test_vit2"},
    {"scorer_weights": "none.safetensors", "trunk": "test_resnet"},
    {"spacing": -1.0},
    {"ips_chunk": 0},
    {"guide_temperature": 1e-300},
    {"sigma": 1e-300},
    {"label_smoothing": 1.0},
    {"dropout": 1.0},
    {"num_heads": 3},
    {"mode": "ips", "k": 26, "warmup_k": 26},
]


@pytest.mark.parametrize("changes", IMPOSSIBLE)
def test_selections_that_cannot_be_are_refused(pixels: Pixels, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"model\.|is no trunk|cannot be read as weights"):
        make(pixels, changes)


@pytest.mark.parametrize(("k", "warmup_k", "drawn"), [(4, 4, 4), (4, 11, 8), (16, 8, 16)])
def test_random_patches_come_in_whole_sets(
    pixels: Pixels, k: int, warmup_k: int, drawn: int
) -> None:
    """A sweep's test_samples may be more than the warm-up draws."""
    task = make(pixels, {"k": k, "warmup_k": warmup_k})
    batch = batch_of(task)
    assert batch["random_cells"].shape == (4, drawn)
    assert torch.isfinite(task(batch, 0.0)["loss"])


def test_positions_count_the_patches(pixels: Pixels) -> None:
    task = make(pixels, {"positions": True, "alone": 0.0}).eval()
    patches = torch.rand(2, 4, 3, 16, 16)
    torch.nn.init.normal_(task.aggregator.positions)
    turned = task.classify(patches.flip(1))[0]
    assert not torch.allclose(task.classify(patches)[0], turned, atol=1e-3)


def test_patience_waits_for_the_scorer_to_decide(pixels: Pixels) -> None:
    assert make(pixels, {"warmup": 0.4}).patience_begins == 0.4
    assert make(pixels, {"warmup": 0.4, "mode": "grid"}).patience_begins == 0.0


def test_selection_entropy_tells_a_place_from_a_pattern(pixels: Pixels) -> None:
    rng = np.random.default_rng(0)
    one = torch.from_numpy(rng.random(64))
    alike = one.repeat(8, 1)
    assert float(selection_entropy(alike, 4)) == pytest.approx(0.0, abs=1e-6)
    apart = torch.stack([torch.roll(torch.arange(64.0), 4 * i) for i in range(8)])
    assert float(selection_entropy(apart, 4)) == pytest.approx(1.0)
    # two places, taken by half of the images each: log(2 * 4) between log 4 and log 32
    halves = torch.cat([alike[:4], alike[:4].flip(1)])
    assert float(selection_entropy(halves, 4)) == pytest.approx(1 / 3, abs=1e-6)
    assert float(selection_entropy(alike[:1], 4)) == 1.0
    (limit,) = make(pixels).limits()
    assert (limit.name, limit.low, limit.then) == ("selection_entropy", MIN_ENTROPY, "warn")
    losses = [{"estimator": "score_function"}, {"estimator": "masked_loo", "num_noise": 20}]
    for changes in losses:
        task = make(pixels, changes).train()
        assert limit.name in task(batch_of(task), 0.9)
