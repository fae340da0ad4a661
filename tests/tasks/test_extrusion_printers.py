"""Extrusion: tables and folders of prints, odd printers in a sentence, and runs on a printer that is new."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from assay.bundle.bundle import Bundle
from assay.config import to_dict
from assay.data.dataset import Dataset
from assay.data.images.pixels import Pixels
from assay.data.images.store import Store
from assay.data.split import draw_split
from assay.data.split_config import SplitConfig
from assay.errors import ConfigError, ManifestError, SplitError
from assay.experiment.export import ship
from assay.experiment.judge import judge
from assay.experiment.options import parse
from assay.files import write_parquet
from assay.metrics.alarm import AlarmConfig
from assay.metrics.frames import prints_of
from assay.metrics.predictions import rows_of
from assay.runs.folder import Run
from assay.runs.results import read_predictions
from assay.train.source import TaskSource, load_task
from assay.train.task import BatchRows
from assay.train.worker import Job, work

SOURCE = TaskSource.read(Path(__file__).parents[2] / "tasks" / "extrusion.py")
TASK: Any = load_task(SOURCE)


# Data


def write_table(folder: Path, rows: list[tuple[str, str, int]], every_s: float = 0.5) -> Path:
    """The competition's table: printer, print and label of frames, whose files are named by their times."""
    lines = []
    for number, (printer, print_id, label) in enumerate(rows):
        path = folder / f"images/{1_660_000_000 + number * every_s:.2f}.png"
        path.parent.mkdir(exist_ok=True, parents=True)
        image = np.random.default_rng(number).integers(0, 255, (32, 64, 3), dtype=np.uint8)
        cv2.imwrite(str(path), image)
        lines.append((path.relative_to(folder), printer, print_id, label))
    with (folder / "train.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("img_path", "printer_id", "print_id", "has_under_extrusion"))
        table.writerows(lines)
    return folder / "train.csv"


def frames(printers: str = "abc", prints: int = 6, each: int = 2) -> list[tuple[str, str, int]]:
    """Prints of each printer, every other one faulty; print ids go on over printers."""
    return [
        (printer, f"{place * prints + number}", number % 2)
        for place, printer in enumerate(printers)
        for number in range(prints)
        for _ in range(each)
    ]


def read(path: Path, *options: str, preset: str = "competition") -> tuple[Any, Any]:
    arguments = ["--preset", preset, "--data.root", str(path), "--model.weights", "none"]
    config, _, _ = parse(TASK, [*arguments, *options])
    return config, TASK.manifest(config, path.parent)


def task_of(config: Any, manifest: Any) -> Any:
    split = draw_split(manifest, config.split)
    small = replace(
        config,
        model=replace(config.model, network="test_resnet"),
        image=replace(config.image, height_px=32, width_px=64),
    )
    pixels = Pixels(Store(""), manifest.column("content"))
    return TASK(small, Dataset.of(manifest, pixels, split.rows("train")))


def test_the_competitions_table_is_read_with_times(tmp_path):
    config, manifest = read(write_table(tmp_path, frames()))
    assert manifest.domains == ["printer_id"]
    assert manifest.classes == ["0", "1"]
    assert manifest.column("group")[0] == "a/0"
    seconds = task_of(config, manifest).seconds
    assert seconds.tolist() == [0.0, 0.5] * 18
    split = draw_split(manifest, config.split)
    printers = np.array(manifest.column("domain.printer_id"))
    (unseen,) = set(printers[split.rows("test_unseen")])
    assert unseen not in printers[split.rows("train")]
    assert unseen not in printers[split.rows("val")]
    prints = np.array(manifest.column("group"))
    for name in ("val", "test_seen", "test_unseen"):
        assert not set(prints[split.rows(name)]) & set(prints[split.rows("train")])


def test_folders_are_read_by_their_names(tmp_path):
    for label, printer, number, index in [
        (label, p, n, i) for label in ("ok", "under") for p in "abc" for n in range(4) for i in "01"
    ]:
        path = tmp_path / f"frames/{label}/{printer}/{label}{number}/{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([ord(printer), number, int(index), len(label)])
        cv2.imwrite(str(path), rng.integers(0, 255, (8, 16, 3), dtype=np.uint8))
    config, manifest = read(tmp_path / "frames", preset="files")
    assert (manifest.domains, manifest.classes) == (["printer"], ["ok", "under"])
    assert len(set(manifest.column("group"))) == 24
    assert draw_split(manifest, config.split).tests == ["test_seen", "test_unseen"]


# Odd data, one sentence each


def test_a_printer_of_one_class_is_said(tmp_path):
    rows = [row for row in frames() if row[0] != "b" or row[2]]
    config, manifest = read(write_table(tmp_path, rows), "--split.unseen", "c")
    (doubt,) = task_of(config, manifest).doubts()
    assert doubt.startswith("All images of train of 'b' are of the class '1'")


def test_prints_of_both_labels_are_said(tmp_path):
    rows = frames()
    rows[1] = ("a", "0", 1)
    config, manifest = read(write_table(tmp_path, rows), "--split.unseen", "c")
    (doubt,) = task_of(config, manifest).doubts()
    assert doubt.startswith("1 of 18 groups have images of several classes, first 'a/0'")


def test_a_print_under_two_printers_is_said_or_refused(tmp_path):
    rows = frames()
    rows[1] = ("b", "0", 0)
    path = write_table(tmp_path, rows)
    by_print = ("--data.group", "print_id", "--split.unseen")
    config, manifest = read(path, *by_print, "c")
    (doubt,) = task_of(config, manifest).doubts()
    assert doubt.startswith("1 of 18 groups are of several domains, first '0'")
    config, manifest = read(path, *by_print, "b")
    with pytest.raises(
        SplitError,
        match="The group '0', with what shares a file or is joined with it, has held-out and",
    ):
        draw_split(manifest, config.split)


def test_one_printer_alone_cannot_be_held_out_and_trains_erm_alone(tmp_path):
    path = write_table(tmp_path, frames("a"))
    config, manifest = read(path)
    with pytest.raises(SplitError, match="1 of 1 values of 'printer_id' would be held out"):
        draw_split(manifest, config.split)
    config, manifest = read(path, "--split.unseen-domain", "", "--algorithm.name", "dann")
    with pytest.raises(ConfigError, match="All images of train are of one domain"):
        task_of(config, manifest)
    config, manifest = read(path, "--split.unseen-domain", "")
    assert task_of(config, manifest).num_domains == 1


def test_a_printer_that_is_not_there_cannot_be_held_out(tmp_path):
    config, manifest = read(write_table(tmp_path, frames()), "--split.unseen", "z")
    with pytest.raises(
        SplitError, match=r"split\.unseen names 'z', which no image has; the data has: a, b, c"
    ):
        draw_split(manifest, config.split)


def test_frames_of_one_time_are_refused(tmp_path):
    path = write_table(tmp_path, frames())
    first = next((tmp_path / "images").iterdir())
    other = tmp_path / "images" / "deeper" / first.name
    other.parent.mkdir()
    cv2.imwrite(str(other), np.full((32, 64, 3), 7, np.uint8))
    lines = path.read_text().splitlines()
    row = next(line for line in lines if first.name in line)
    path.write_text(
        "\n".join([*lines, row.replace(f"images/{first.name}", f"images/deeper/{first.name}")])
    )
    with pytest.raises(ManifestError, match="have one time, 16600000"):
        read(path)


# Runs


def test_features_of_many_places_are_averaged_for_probes(tmp_path):
    config, manifest = read(write_table(tmp_path, frames()), preset="source")
    split = draw_split(manifest, config.split)
    for row in range(2):
        Store(str(tmp_path / "store")).build(
            manifest.column("content")[row], Path(manifest.column("image")[row])
        )
    pixels = Pixels(Store(str(tmp_path / "store")), manifest.column("content"))
    small = replace(config, image=replace(config.image, height_px=32, width_px=64))
    task = TASK(small, Dataset.of(manifest, pixels, split.rows("train"))).eval()
    rows = np.arange(2)
    batch = TASK.prepare(small, task.dataset, BatchRows(rows, rows.astype(np.uint64), False))
    with torch.no_grad():
        columns = task.predict_once(batch)
        vectors = task.features(task.normalised(batch))
    assert vectors.shape == (2, 1024)
    expected = vectors.reshape(2, 512, 2).mean(2)
    torch.testing.assert_close(columns["features"], expected)
    assert columns["seconds"].tolist() == [0.0, 0.5]


def trained(tmp_path: Path, rows: list[tuple[str, str, int]], *options: str) -> tuple[Any, Job]:
    """Train for an epoch and predict; settings and job."""
    config, manifest = read(write_table(tmp_path, rows), "--train.epochs", "1", *options)
    small = replace(
        config,
        model=replace(config.model, network="test_resnet"),
        image=replace(config.image, height_px=32, width_px=64),
        train=replace(config.train, batch_size=8),
    )
    store = Store(str(tmp_path / "store"))
    for content, path in manifest.files.items():
        store.build(content, Path(path))
    split = draw_split(manifest, small.split)
    pixels, folder = Pixels(store, manifest.column("content")), tmp_path / "run"
    folder.mkdir()
    write_parquet(folder / "split.parquet", split.table(manifest))
    data = (manifest, split, pixels, folder, "cpu", "ddp")
    job = Job(SOURCE, to_dict(small), *data, judged=tuple(split.tests))
    work(job, job.stream())
    return small, job


def test_a_run_keeps_its_doubts_and_what_adapted_models_answer(tmp_path):
    """A printer of one class is said in the record; frames that were adapted to are judged by no adapted model."""
    rows = [row for row in frames(each=3) if row[0] != "b" or row[2]]
    # nine frames, of three prints
    options = ("--split.unseen", "c", "--adapt.methods", "recalibrate", "--adapt.minutes", "0.075")
    small, job = trained(tmp_path, rows, *options)
    assert any("of 'b' are of the class '1'" in text for text in Run(job.folder).record.warnings)
    table = read_predictions(job.folder)
    unseen = rows_of(table, "test_unseen").sort_by("id")
    assert unseen["later"].to_pylist() == [0] * 9 + [1] * 9
    assert not any(rows_of(table, "val")["later"].to_pylist())
    judged = TASK.judge(small, table, tmp_path)
    assert judged.metrics["test_unseen"]["adapted_recalibrate"].num == 9
    assert judged.metrics["test_unseen"]["not_adapted"].num == 9
    assert "not_adapted" not in judged.metrics["val"]


def weights_of(job: Job) -> dict[str, torch.Tensor]:
    return load_file(job.folder / "best" / "weights.safetensors")


def test_labels_of_a_printer_that_is_seen_without_them_change_no_bit(tmp_path):
    """Weights and answers are those of a run whose new printer has all labels turned; without its images they are others."""
    turned = [(p, number, 1 - label if p == "c" else label) for p, number, label in frames()]
    algorithm = ("--split.unseen", "c", "--algorithm.name", "dann", "--split.unlabelled")
    jobs = {}
    for name, rows, use in (
        ("first", frames(), "train"),
        ("turned", turned, "train"),
        ("beside", frames(), "drop"),
    ):
        (tmp_path / name).mkdir()
        config, jobs[name] = trained(tmp_path / name, rows, *algorithm, use)
    weights = {name: weights_of(job) for name, job in jobs.items()}
    for key, value in weights["first"].items():
        assert torch.equal(value, weights["turned"][key]), key
    assert not torch.equal(weights["first"]["head.weight"], weights["beside"]["head.weight"])
    tables = {
        name: rows_of(read_predictions(job.folder), "test_unseen") for name, job in jobs.items()
    }
    first, other = tables["first"], tables["turned"]
    assert first["logits"].to_pylist() == other["logits"].to_pylist()
    assert first["truth"].to_pylist() == [1 - truth for truth in other["truth"].to_pylist()]
    # half of the new printer's prints is scored, the others were seen, and the run beside it is scored on the same
    seen = {*np.array(jobs["first"].manifest.column("group"))[jobs["first"].dataset.unlabelled]}
    scored = {*first["group"].to_pylist()}
    assert (len(seen), len(scored), seen & scored) == (3, 3, set())
    assert tables["beside"]["id"].to_pylist() == first["id"].to_pylist()
    result = judge(jobs["first"].folder, TASK, replace(config, split=SEEN), tmp_path)
    assert result.marks.keys() == {"TRANSDUCTIVE"}


SEEN = SplitConfig(unseen_domain="printer_id", unseen=("c",), unlabelled="train")


def test_erm_beside_a_run_that_saw_the_printer_is_judged_on_the_same_prints():
    demo = TASK.presets()["demo"]
    (erm,) = TASK.baselines(replace(demo, split=SEEN)).values()
    assert erm.split == replace(SEEN, unlabelled="drop")


def test_alarms_ship_with_what_val_chose_and_follow_when_judged_anew(tmp_path):
    small, job = trained(tmp_path, frames(each=4), "--split.unseen", "c", "--alarm.window", "2")
    ship(job, judge(job.folder, TASK, small, tmp_path), tmp_path)
    val = prints_of(rows_of(read_predictions(job.folder), "val"))
    sound = [each.odds(1) for each in val if not each.truth.any()]
    assert sound
    card = Bundle(job.folder / "bundle").card
    assert [alarm.kind for alarm in card.alarms] == ["cusum", "average"]
    for alarm in card.alarms:
        # no frame of a few seconds may alarm, so the threshold is the highest that any reaches
        assert alarm.threshold == max(alarm.path(odds).max() for odds in sound)
    assert (card.alarms[1].window, card.decision.positive) == (2, 1)
    judge(job.folder, TASK, replace(small, alarm=AlarmConfig(window=3)), tmp_path)
    assert Bundle(job.folder / "bundle").card.alarms[1].window == 3
