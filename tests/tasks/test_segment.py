"""What tasks/segment.py promises beyond the conformance suite: masks given and made, the rule, and a run from files to a report."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from assay.cli import console
from assay.cli.task import main
from assay.data.dataset import Dataset
from assay.data.images.pixels import Pixels
from assay.data.images.pyramid import ImagePyramid
from assay.data.images.store import Store
from assay.data.masks import account
from assay.data.split import draw_split
from assay.errors import MaskError, SplitError
from assay.levels import VOID
from assay.train.source import TaskSource, load_task
from assay.train.task import BatchRows

SCRIPT = Path(__file__).parents[2] / "tasks" / "segment.py"
TASK = load_task(TaskSource.read(SCRIPT))


def user_files(folder: Path, builds: int = 4, layers: int = 2, size: int = 64) -> Path:
    """Layers with a dark disc each, and its mask, as a user would bring them."""
    rng = np.random.default_rng(0)
    for build in range(builds):
        for layer in range(layers):
            mask = np.zeros((size, size), np.uint8)
            x, y = (int(v) for v in rng.integers(16, size - 16, 2))
            cv2.circle(mask, (x, y), 8, 255, -1)
            image = rng.normal(150, 10, (size, size)) - 100 * (mask > 0)
            for kind, drawn in (("images", image.clip(0, 255)), ("masks", mask)):
                path = folder / kind / f"b{build}" / f"{layer}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), drawn.astype(np.uint8))
    return folder / "images"


def settings_of(root: Path, files: str = "../masks/{folder}/{name}.png") -> object:
    base = TASK.presets()["files"]
    return replace(
        base,
        data=replace(base.data, root=root),
        masks=replace(base.masks, files=files),
        crops=replace(base.crops, crop_px=64),
        tiles=replace(base.tiles, tile_px=64, overlap_px=0),
        model=replace(base.model, weights="none"),
    )


def arguments(folder: Path, *more: str) -> list[str]:
    images = ["--data.root", str(folder / "images")]
    masks = ["--masks.files", "../masks/{folder}/{name}.png"]
    where = ["--workers", "0", "--storage", str(folder / "runs")]
    return ["--preset", "files", "--model.weights", "none", *images, *masks, *where, *more]


def test_given_masks_are_learnt_from_and_a_build_stands_in_one_set(tmp_path):
    config = settings_of(user_files(tmp_path))
    manifest = TASK.manifest(config, tmp_path / "runs")
    assert manifest.mask_classes == ["defect"]
    assert [*manifest.masks] == ["label"]
    split = draw_split(manifest, config.split)
    groups = {
        name: {manifest.column("group")[r] for r in split.rows(name)}
        for name in ("train", "val", "test")
    }
    assert (
        not groups["train"] & groups["val"]
        | groups["train"] & groups["test"]
        | groups["val"] & groups["test"]
    )
    again = TASK.manifest(config, tmp_path / "runs")
    assert again.fingerprint == manifest.fingerprint


def test_a_corrected_mask_is_other_data(tmp_path):
    config = settings_of(user_files(tmp_path), files="")
    first = TASK.manifest(config, tmp_path / "runs")
    path = Path(first.table["mask.label"][0].as_py())
    drawn = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(path), 255 - drawn)
    second = TASK.manifest(config, tmp_path / "runs")
    assert np.array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), 255 - drawn)
    assert second.fingerprint != first.fingerprint
    assert second.masks["label"][1:] == first.masks["label"][1:]


def test_a_build_recorded_again_is_other_data_with_masks_of_its_own(tmp_path):
    config = settings_of(user_files(tmp_path), files="")
    first = TASK.manifest(config, tmp_path / "runs")
    image = Path(first.column("image")[0])
    cv2.imwrite(str(image), cv2.imread(str(image), cv2.IMREAD_GRAYSCALE)[::-1, ::-1])
    second = TASK.manifest(config, tmp_path / "runs")
    assert second.column("mask.label") == first.column("mask.label")
    drawn = cv2.imread(second.column("mask.label")[0], cv2.IMREAD_UNCHANGED)
    turned = cv2.imread(str(tmp_path / "masks/b0/0.png"), cv2.IMREAD_UNCHANGED)[::-1, ::-1]
    assert ((drawn > 0) & (turned > 0)).sum() > 0.8 * ((drawn > 0) | (turned > 0)).sum()
    assert second.masks["label"][1:] == first.masks["label"][1:]


def test_voc_masks_with_their_void_border(tmp_path):
    """SegmentationClass: a palette of numbers, 255 around each object."""
    images = user_files(tmp_path)
    for path in (tmp_path / "masks").glob("*/*.png"):
        mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        border = cv2.dilate(mask, np.ones((5, 5), np.uint8)) - mask
        numbers = np.where(border > 0, 255, np.where(mask > 0, 2, 0)).astype(np.uint8)
        picture = Image.fromarray(numbers, "P")
        picture.putpalette([value for i in range(256) for value in (i, 255 - i, i // 2)])
        picture.save(path)
    base: Any = settings_of(images)
    masks = replace(base.masks, values="index", classes=("pore", "hole"))
    with pytest.raises(MaskError, match=r"value 255 .*--masks\.void 255"):
        TASK.manifest(replace(base, masks=masks), tmp_path / "runs")
    masks = replace(masks, void=255)
    manifest = TASK.manifest(replace(base, masks=masks), tmp_path / "runs")
    store = Store(str(tmp_path / "store"))
    key = manifest.masks["label"][0]
    store.build(key, Path(manifest.files[key]))
    stored = store.open(key).pixels[..., 0]
    assert sorted(np.unique(stored).tolist()) == [0, 2, VOID]
    counts = account.of_table(manifest.table)["label"]
    assert counts.marked_px["pore"] == 0 < counts.marked_px["void"]
    assert counts.sentences() == ["no pixel is marked as pore"]


@pytest.mark.parametrize("preset", ["demo", "smoke", "files", "mvtec"])
def test_the_rule_is_not_trained(preset, tmp_path, capsys):
    words = ["--preset", preset, "--storage", str(tmp_path), "--model.mode", "heuristic"]
    with pytest.raises(SystemExit) as ended:
        main(str(SCRIPT), words)
    assert ended.value.code == 2
    assert "pass --train.epochs 0" in capsys.readouterr().err


def test_the_heuristic_is_one_run_whatever_the_network(tmp_path):
    config = settings_of(user_files(tmp_path))
    other = replace(
        config, model=replace(config.model, loss="dice"), train=replace(config.train, epochs=3)
    )
    assert TASK.baselines(config) == TASK.baselines(other)
    [still] = TASK.baselines(config).values()
    assert TASK.baselines(still) == {}
    assert (still.model.mode, still.train.epochs) == ("heuristic", 0)


def fill_masks(folder: Path, value: int, pattern: str = "*/*", width: int = 64) -> None:
    """Write one value over all pixels of masks."""
    for path in folder.glob(f"masks/{pattern}.png"):
        cv2.imwrite(str(path), np.full((64, width), value, np.uint8))


@pytest.mark.parametrize(
    ("planted", "expected"),
    [
        (lambda f: fill_masks(f, 0, "b0/1", width=32), r"32 x 64.*64 x 64|64 x 32.*64 x 64"),
        (lambda f: (f / "masks/b1/0.png").unlink(), "1 of 8 images have no mask"),
        (lambda f: fill_masks(f, 0), "are empty"),
        (lambda f: fill_masks(f, 255), "cover 100"),
    ],
    ids=["size", "missing", "empty", "full"],
)
def test_masks_that_cannot_be_learnt_from_are_refused(tmp_path, planted, expected, capsys):
    user_files(tmp_path)
    planted(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(str(SCRIPT), arguments(tmp_path))
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith(MaskError.__name__)
    assert len(message.splitlines()) == 1
    assert not [*(tmp_path / "runs").glob("segment-*")]
    assert re.search(expected, message), message


def test_values_that_are_no_class_are_refused(tmp_path, capsys):
    user_files(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(
            str(SCRIPT),
            arguments(tmp_path, "--masks.values", "index", "--masks.classes", "pore", "streak"),
        )
    assert ended.value.code == 2
    assert "255" in capsys.readouterr().err


def test_builds_too_few_to_split_are_refused(tmp_path):
    config = settings_of(user_files(tmp_path, builds=2))
    with pytest.raises(SplitError, match="2 groups are too few"):
        draw_split(TASK.manifest(config, tmp_path / "runs"), config.split)


def test_the_heuristic_answers_by_its_rule(tmp_path):
    """Levels of what the maker marks; it needs no weights."""
    user_files(tmp_path)
    config = TASK.baselines(settings_of(tmp_path / "images"))["heuristic"]
    manifest = TASK.manifest(config, tmp_path / "runs")
    store = Store(str(tmp_path / "store"))
    for key, path in manifest.files.items():
        store.build(key, Path(path))
    pixels = Pixels(store, manifest.column("content"), manifest.masks)
    dataset = Dataset.of(manifest, pixels)
    rows = BatchRows(np.arange(8), np.zeros(8, np.uint64), train=False)
    columns = TASK(config, dataset).predict(TASK.prepare(config, dataset, rows))
    counts = columns["pixels_label"].numpy().reshape(8, 2, -1)
    assert (counts[:, :, 1:-1] == 0).all()
    iou = counts[:, 1, -1] / (counts[:, 1].sum(1) + counts[:, 0, -1])
    assert (iou > 0.9).all()  # dark discs are what the rule is for
    assert isinstance(pixels[0], ImagePyramid)


def test_a_run_learns_ships_both_graphs_and_says_what_they_are_worth(tmp_path, capsys):
    """From files to a report, in one process: the whole of it, small."""
    user_files(tmp_path, builds=5)
    cv2.imwrite(str(tmp_path / "masks/b0/9.png"), np.zeros((64, 64), np.uint8))
    options = (
        "--crops.crop-px 64 --tiles.tile-px 64 --tiles.overlap-px 0 "
        "--model.encoder tu-mobilenetv3_small_050 --model.decoder-channels 32 16 16 8 8 "
        "--train.epochs 6 --train.batch-size 4 --optim.lr 0.003 "
        "--quantize.max-drop 1.0 --split.val 0.3"
    )
    main(str(SCRIPT), arguments(tmp_path, *options.split()))
    shown = capsys.readouterr()
    assert "heuristic" in shown.out
    left = "masks (label): 1 mask files are no image's and were not used, first ../masks/b0/9.png."
    assert left in shown.err
    [folder] = [
        f
        for f in (tmp_path / "runs").glob("segment-*")
        if (f / "bundle" / "segment_int8.onnx").exists()
    ]
    card = json.loads((folder / "bundle" / "bundle.json").read_text())
    result = json.loads((folder / "result.json").read_text())
    assert card["thresholds"] == result["thresholds"]
    assert [scoring["graph"] for scoring in result["scorings"]] == ["", "int8"]
    assert json.loads((folder / "run.json").read_text())["scorings"][1]["graph"] == "int8"
    assert card["metrics"]["test"]["metrics"]["iou"] == result["sets"]["test"]["metrics"]["iou"]
    assert card["int8"]["metrics"]["test"]["metrics"]["iou"]["num"] == result["sets"]["test"]["num"]
    page = (folder / "report.html").read_text()
    assert "In 8 bits" in page
    assert "1 mask files are no image" in page
    record = json.loads((folder / "run.json").read_text())
    assert record["masks"]["label"]["unused_files"] == 1
    assert record["masks"]["label"]["given"] == 10
    assert "Precision over recall of pixels" in page
    assert "falsely marked" in page


def test_a_run_without_a_test_set_ships_both_graphs_and_says_so(tmp_path, capsys):
    user_files(tmp_path, builds=4)
    options = (
        "--crops.crop-px 64 --tiles.tile-px 64 --tiles.overlap-px 0 "
        "--model.encoder tu-mobilenetv3_small_050 --model.decoder-channels 32 16 16 8 8 "
        "--train.epochs 1 --train.batch-size 4 --quantize.max-drop 1.0 --split.test 0"
    )
    main(str(SCRIPT), arguments(tmp_path, *options.split()))
    assert "No image is in test, so that nothing is scored or compared" in capsys.readouterr().out
    [bundle] = (tmp_path / "runs").glob("segment-*/bundle/segment_int8.onnx")
    assert json.loads((bundle.parent / "bundle.json").read_text())["int8"]["comparisons"] == []


def test_masks_are_made_and_the_command_stops(tmp_path, capsys, monkeypatch):
    """A person corrects one, and the same options then learn from what was corrected."""
    user_files(tmp_path)
    monkeypatch.chdir(SCRIPT.parents[1])
    options = [
        "--preset",
        "files",
        "--data.root",
        str(tmp_path / "images"),
        "--masks.maker",
        "otsu",
    ]
    words = ["masks", *options, "--storage", str(tmp_path / "runs")]
    console.main(words)
    shown = capsys.readouterr().out
    assert "8 masks (label)" in shown
    [folder] = (tmp_path / "runs" / "masks").iterdir()
    assert str(folder / "contact.png") in shown
    assert not [*(tmp_path / "runs").glob("segment-*")]
    mask = next(folder.glob("b0_0*.png"))
    cv2.imwrite(str(mask), np.full((64, 64), 255, np.uint8))
    console.main(words)
    assert "1 masks were corrected by a person" in capsys.readouterr().out
    assert cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE).min() == 255
    with pytest.raises(SystemExit) as ended:
        console.main(
            ["masks", "tasks/fingerprint.py", "--preset", "smoke", "--storage", str(tmp_path)]
        )
    assert ended.value.code == 2
