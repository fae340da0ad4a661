"""`assay predict`: the answers of the bundle and of HTTP, from files, entries of a store, parts and runs."""

import base64
import csv
import json
import shutil

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from assay.bundle.bundle import Bundle
from assay.cli.console import main
from assay.data.images import decode
from assay.data.images.entry import MASK, write_entry
from assay.data.images.pyramid import ImagePyramid
from assay.data.images.store import Store
from assay.data.images.stored_level import StoredLevel
from assay.errors import BundleError
from assay.serve import offline
from assay.serve.image_list import list_images


@pytest.fixture
def here(here, monkeypatch):
    """Chunks are worked off in this process; by a Ray in the last test."""
    monkeypatch.setattr(offline, "_run", map)
    return here


def test_rows_are_what_http_answers(here, ask, registry, pictures, tmp_path):
    folder = registry.fetch(registry.holder("parts", "champion"))
    assert offline.predict(folder, pictures, tmp_path, "fp32", True) == (4, 0)
    rows = pq.read_table(tmp_path / "answers.parquet").to_pylist()
    assert [row["image"] for row in rows] == [str(path) for path in pictures]
    for row, path in zip(rows, pictures, strict=True):
        view = ask("POST", "/v1/parts", content=path.read_bytes()).json()["views"][0]
        answer = view["answer"]
        assert row["label"] == answer["label"]
        assert {name: row[f"prob.{name}"] for name in answer["probs"]} == answer["probs"]
        assert (json.loads(row["set"]), row["rejected"]) == (answer["set"], answer["rejected"])
        assert json.loads(row["patches"]) == view["patches"]
    with (tmp_path / "answers.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["label"] for line in lines] == [row["label"] for row in rows]
    assert len(list((tmp_path / "overlays").iterdir())) == 4


def test_views_of_a_group_are_judged_together(here, ask, registry, pictures, tmp_path):
    folder = registry.fetch(registry.holder("parts", "champion"))
    listed = tmp_path / "list.csv"
    bad = tmp_path / "bad.png"
    bad.write_bytes(pictures[0].read_bytes()[:-30])
    lines = [*(f"{path},p{i % 2}" for i, path in enumerate(pictures)), f"{bad},p0"]
    listed.write_text("image,group\n" + "\n".join(lines))
    assert offline.predict(folder, [listed], tmp_path, "fp32", False) == (4, 1)
    parts = pq.read_table(tmp_path / "parts.parquet").to_pylist()
    assert [(part["group"], part["views"]) for part in parts] == [("p0", 2), ("p1", 2)]
    for part, views in zip(parts, (pictures[::2], pictures[1::2]), strict=True):
        files = [("image", (path.name, path.read_bytes())) for path in views]
        answer = ask("POST", "/v1/parts", files=files).json()["answer"]
        probs = [part[f"prob.{name}"] for name in answer["probs"]]
        assert probs == pytest.approx(list(answer["probs"].values()), abs=1e-12)
        assert (part["label"], json.loads(part["set"])) == (answer["label"], answer["set"])


def test_masks_are_what_http_answers(here, ask, registry, pictures, tmp_path):
    folder = registry.fetch(registry.holder("layers", "champion"))
    offline.predict(folder, pictures[:2], tmp_path, "fp32", True)
    rows = pq.read_table(tmp_path / "answers.parquet").to_pylist()
    for i, row in enumerate(rows):
        view = ask("POST", "/v1/layers", content=pictures[i].read_bytes()).json()["views"][0]
        assert json.loads(row["defects"]) == view["defects"]
        assert row["area_px.pore"] == sum(defect["area_px"] for defect in view["defects"])
        sent = np.frombuffer(base64.b64decode(view["mask"]["png"]), np.uint8)
        mask = cv2.imread(str(tmp_path / "masks" / f"{i:06d}.png"), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(mask, cv2.imdecode(sent, cv2.IMREAD_UNCHANGED))


def test_a_store_is_read_where_it_is_looked_at_and_answers_alike(
    here, registry, pictures, tmp_path
):
    store = Store(str(tmp_path / "store"))
    for i, path in enumerate(pictures):
        write_entry(store.path(f"{i:032x}"), ImagePyramid.of(decode.read(path)))
    mask = ImagePyramid.of_mask(np.zeros((8, 8), np.uint8))
    write_entry(store.path(f"{0:032x}{MASK}"), mask)
    stored = [path for path, _ in list_images([tmp_path / "store"])]
    assert len(stored) == len(pictures)
    folder = registry.fetch(registry.holder("parts", "champion"))
    for name, images in (("files", sorted(pictures)), ("entries", stored)):
        assert offline.predict(folder, images, tmp_path / name, "fp32", True)[0] == len(pictures)
    tables = [
        pq.read_table(tmp_path / name / "answers.parquet").drop_columns(["image"])
        for name in ("files", "entries")
    ]
    assert tables[0].equals(tables[1])
    opened = Bundle(folder).read(stored[0])
    assert isinstance(opened.levels[0], StoredLevel)
    damaged = bytearray(stored[0].read_bytes())
    damaged[len(damaged) // 2 :] = bytes(len(damaged) - len(damaged) // 2)
    stored[0].write_bytes(damaged)
    assert offline.predict(folder, stored, tmp_path / "again", "fp32", True) == (len(stored) - 1, 1)


def test_parts_01_and_1_are_two_and_images_without_a_part_are_in_none(
    here, registry, pictures, tmp_path
):
    folder = registry.fetch(registry.holder("parts", "champion"))
    lines = (f"{path},{part}" for path, part in zip(pictures, ("01", "1", "", ""), strict=True))
    listed = tmp_path / "views.csv"
    listed.write_text("image,group\n" + "\n".join(lines))
    assert offline.predict(folder, [listed], tmp_path, "fp32", False) == (4, 0)
    parts = pq.read_table(tmp_path / "parts.parquet").to_pylist()
    assert [(part["group"], part["views"]) for part in parts] == [("01", 1), ("1", 1)]


def test_a_run_may_be_named_as_for_other_commands(here, registry, pictures, tmp_path, capsys):
    run = tmp_path / "runs" / "parts-0123456789ab"
    shutil.copytree(registry.fetch(registry.holder("parts", "champion")), run / "bundle")
    (run / "run.json").write_text('{"schema": 1, "state": "finished", "task": "parts"}')
    words = ("--storage", str(run.parent), "--out", str(tmp_path / "out"))
    main(["predict", "0123", str(pictures[0]), *words])
    assert capsys.readouterr().out.startswith("1 images answered")
    with pytest.raises(SystemExit):
        main(["predict", "9999", str(pictures[0]), *words])
    assert "There is no run '9999'" in capsys.readouterr().err


def test_a_bundle_may_be_named_by_its_run(registry, tmp_path):
    folder = registry.fetch(registry.holder("parts", "champion"))
    assert offline.find_bundle(folder) == folder == offline.find_bundle(folder.parent)
    with pytest.raises(BundleError, match="no bundle"):
        offline.find_bundle(tmp_path)


def test_an_overlay_shows_where_it_looked(registry, pictures):
    pixels = cv2.imread(str(pictures[0]))[..., ::-1]
    for task in ("parts", "layers"):
        opened = Bundle(registry.fetch(registry.holder(task, "champion")))
        answer = opened.predict(pictures[0])
        overlay = offline.draw_overlay(opened.read(pictures[0]), answer)
        changed = (overlay != pixels).any(2)
        expected = answer.mask > 0 if task == "layers" else np.zeros(pixels.shape[:2], bool)
        if task == "parts":  # the whole image, outlined
            expected[0], expected[:, 0] = True, True
        assert changed[expected].mean() > 0.95
        assert overlay.shape == pixels.shape


@pytest.mark.usefixtures("here")
def test_a_ray_of_its_own_gives_what_this_process_gives(registry, pictures, tmp_path, monkeypatch):
    folder = registry.fetch(registry.holder("parts", "champion"))
    offline.predict(folder, pictures, tmp_path / "here", "fp32", False)
    monkeypatch.undo()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(offline, "CHUNK", 1)
    assert offline.predict(folder, pictures, tmp_path / "ray", "fp32", False) == (4, 0)
    tables = [pq.read_table(tmp_path / name / "answers.parquet") for name in ("here", "ray")]
    assert tables[0].equals(tables[1])
