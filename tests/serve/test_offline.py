"""`assay predict`: the answers of the bundle and of HTTP, what is left over, what is bad."""

import base64
import csv
import json
import os
import shutil
import struct

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import xxhash

from assay.bundle.bundle import Bundle
from assay.cli.console import main
from assay.data.images import decode
from assay.data.images.entry import MAGIC, MASK, write_entry
from assay.data.images.pyramid import ImagePyramid
from assay.data.images.store import Store
from assay.data.images.stored_level import StoredLevel
from assay.errors import BundleError, ManifestError, ResourceError
from assay.serve import offline
from assay.serve.image_list import list_images, write_list


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


def test_the_same_again_does_what_is_left_and_bad_images_are_listed(
    here, registry, pictures, tmp_path, monkeypatch
):
    folder = registry.fetch(registry.holder("parts", "champion"))
    images = [tmp_path / "images" / f"{i}.png" for i in range(4)]
    images[0].parent.mkdir()
    for path, picture in zip(images, pictures, strict=True):
        path.write_bytes(picture.read_bytes())
    images[2].write_bytes(images[2].read_bytes()[:-30])
    monkeypatch.setattr(offline, "CHUNK", 1)
    chunks: list[dict] = []
    judge = offline._judge
    monkeypatch.setattr(offline, "_judge", lambda *args: chunks.append(args[-1]) or judge(*args))
    out = tmp_path / "out"
    assert offline.predict(folder, images[:2], out, "fp32", False) == (2, 0)
    assert len(chunks) == 2
    assert offline.predict(folder, images, out, "fp32", False) == (3, 1)
    assert len(chunks) == 4
    with (out / "bad.csv").open() as file:
        (bad,) = csv.DictReader(file)
    assert bad["image"] == str(images[2])
    assert "cannot be read" in bad["error"]
    images[2].write_bytes(pictures[2].read_bytes())  # mended: it alone is done again
    assert offline.predict(folder, images, out, "fp32", False) == (4, 0)
    assert len(chunks) == 5
    other = registry.fetch(registry.holder("parts", "challenger"))
    offline.predict(other, images, out, "fp32", False)
    assert len(chunks) == 9


def test_a_chunk_that_is_damaged_is_judged_again(here, registry, pictures, tmp_path):
    folder = registry.fetch(registry.holder("parts", "champion"))
    assert offline.predict(folder, pictures, tmp_path, "fp32", False) == (4, 0)
    before = (tmp_path / "answers.csv").read_bytes()
    (chunk,) = (tmp_path / "chunks").glob("*.json")
    whole = chunk.read_bytes()
    rows = json.loads(whole)
    for damaged in (
        b"",
        b"{",
        b"[]",
        b"3",
        b"[1, 2, 3, 4]",
        b"[" * 99999,
        json.dumps(rows[:3]).encode(),
    ):
        chunk.write_bytes(damaged)
        assert offline.predict(folder, pictures, tmp_path, "fp32", False) == (4, 0)
        assert chunk.read_bytes() == whole
        assert (tmp_path / "answers.csv").read_bytes() == before


def test_answers_below_the_images_are_not_judged_the_next_time(here, registry, pictures, tmp_path):
    folder = registry.fetch(registry.holder("parts", "champion"))
    images = tmp_path / "images"
    images.mkdir()
    for number, picture in enumerate(pictures):
        (images / f"{number}.png").write_bytes(picture.read_bytes())
    (tmp_path / "link").symlink_to(images)
    for root in (images, tmp_path / "link", images / ".." / "images"):
        assert offline.predict(folder, [root], images / "out", "fp32", True) == (4, 0)
    assert len([*(images / "out" / "overlays").iterdir()]) == 4
    with pytest.raises(ManifestError, match="answers for other images"):
        offline.predict(folder, [images / "out" / "overlays"], images / "out", "fp32", False)
    # nor those of another --out
    assert write_list(tmp_path / "elsewhere.parquet", [images])[0] == 4
    (images / "out" / "images.parquet").unlink()  # a user's own folder may be called so
    assert write_list(tmp_path / "elsewhere.parquet", [images])[0] == 8


def test_answers_among_the_images_are_not_judged_and_write_over_nothing(
    here, registry, pictures, tmp_path
):
    folder, root = registry.fetch(registry.holder("layers", "champion")), tmp_path / "layers"
    root.mkdir()
    for i, path in enumerate(pictures[:3]):
        (root / f"{i}.png").write_bytes(path.read_bytes())
    for _ in range(2):
        assert offline.predict(folder, [root], root, "fp32", True) == (3, 0)
    (root / "2.png").write_bytes(b"no image")
    (root / "1.png").unlink()
    assert offline.predict(folder, [root], root, "fp32", True) == (1, 1)
    for name in ("masks", "overlays"):
        assert [path.stem for path in (root / name).iterdir()] == ["000000"]
    (root / "images.parquet").unlink()
    with pytest.raises(ManifestError, match="holds overlays, which is no answer of this command"):
        offline.predict(folder, [root], root, "fp32", True)


def test_overlays_that_are_asked_for_later_are_drawn(here, registry, pictures, tmp_path):
    folder = registry.fetch(registry.holder("parts", "champion"))
    for overlays, num in ((False, 0), (True, 4), (False, 4)):
        assert offline.predict(folder, pictures, tmp_path, "fp32", overlays) == (4, 0)
        assert len(list((tmp_path / "overlays").glob("*"))) == num


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


def bad_files(folder):
    """Plant what is no image in every way; return words of the reasons, by name."""
    folder.mkdir(exist_ok=True)
    (folder / "zero.png").touch()
    (folder / "text.png").write_text("no image")
    damaged = cv2.imencode(".tif", np.zeros((64, 64, 3), np.uint8))[1].tobytes()
    (folder / "damaged.tif").write_bytes(damaged[:200])
    header = b'{"levels": [], "dtype": "uint8", "mean": [0,0,0], "std": [0,0,0], "signature": ""}'
    for name, content in (("e", header), ("list", b"[]")):
        start = MAGIC + struct.pack("<IQ", len(content), xxhash.xxh3_64_intdigest(content))
        (folder / f"{name}.pixels").write_bytes(start + content)
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    (folder / "link.png").symlink_to("nothing")
    (folder / "Pr\udcfcf.png").write_bytes(b"")
    return {
        "zero.png": "",
        "text.png": "",
        "damaged.tif": "",
        "e.pixels": "no level",
        "list.pixels": "",
        "folder.png": "is a folder",
        "pipe.jpg": "no regular file",
        "link.png": "link to nothing",
        "Pr\\udcfcf.png": "no UTF-8",
    }


@pytest.mark.parametrize("listed", [False, True])
def test_one_bad_image_takes_no_other_down(here, registry, pictures, tmp_path, capsys, listed):
    folder, root = registry.fetch(registry.holder("parts", "champion")), tmp_path / "in"
    reasons = bad_files(root)
    for path in pictures:
        (root / path.name).write_bytes(path.read_bytes())
    (root / ".ipynb_checkpoints").mkdir()
    (root / ".ipynb_checkpoints" / "0.png").write_bytes(pictures[0].read_bytes())
    paths = [root]
    if listed:  # no table holds a name that is no UTF-8
        names = [path.name for path, _ in list_images([root]) if path.name.isascii()]
        reasons = {
            name: why for name, why in reasons.items() if name.isascii() and "\\" not in name
        }
        reasons["gone.png"] = "does not exist"
        paths = [root / "t.csv"]
        paths[0].write_text("\n".join(["image", *names, "gone.png"]))
    out = tmp_path / "out"
    done = offline.predict(folder, paths, out, "fp32", True)
    assert done == (len(pictures), len(reasons))
    answers = pq.read_table(out / "answers.parquet").to_pylist()
    assert [row["image"] for row in answers] == [str(root / path.name) for path in pictures]
    with (out / "bad.csv").open() as file:
        bad = {
            row["image"].strip("'").rpartition("/")[2]: row["error"] for row in csv.DictReader(file)
        }
    assert bad.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in bad[name]
        assert "\n" not in bad[name]


def test_whatever_a_decoder_raises_is_that_images_row(
    here, registry, pictures, tmp_path, monkeypatch
):
    folder, read_file = registry.fetch(registry.holder("parts", "champion")), Bundle.read

    def fail(bundle, path):
        if path == pictures[1]:
            raise RecursionError("nested\ntoo deep")
        return read_file(bundle, path)

    monkeypatch.setattr(Bundle, "read", fail)
    assert offline.predict(folder, pictures, tmp_path, "fp32", True) == (3, 1)
    assert "RecursionError, nested too deep" in (tmp_path / "bad.csv").read_text()


def test_an_image_that_ends_its_process_again_and_again_is_passed_over(
    registry, pictures, tmp_path, monkeypatch
):
    folder, read_file = registry.fetch(registry.holder("parts", "champion")), Bundle.read
    monkeypatch.setattr(
        Bundle, "read", lambda *args: os._exit(9) if args[1] == pictures[1] else read_file(*args)
    )

    def judge_apart(work, due):
        for chunk in due:
            while (pid := os.fork()) and os.waitpid(pid, 0)[1]:
                pass  # Ray gives the chunk to another process
            if not pid:
                work(chunk)
                os._exit(0)
            yield {"num": 0, "ended": ""}

    monkeypatch.setattr(offline, "_run", judge_apart)
    assert offline.predict(folder, pictures, tmp_path, "fp32", False) == (3, 1)
    assert (
        f"{pictures[1]} ended the process that judged it 3 times"
        in (tmp_path / "bad.csv").read_text()
    )
    assert [path.suffix for path in (tmp_path / "chunks").iterdir()] == [".json"]


def test_a_disk_that_cannot_be_written_ends_the_job_in_a_sentence_and_loses_nothing(
    here, registry, pictures, tmp_path, monkeypatch
):
    folder = registry.fetch(registry.holder("parts", "champion"))
    monkeypatch.setattr(offline, "CHUNK", 2)
    (tmp_path / "overlays" / "000003.jpg").mkdir(parents=True)  # in the way of the last
    write_list(tmp_path / "images.parquet", pictures)
    with pytest.raises(ResourceError, match=r"ended early.*000003"):
        offline.predict(folder, pictures, tmp_path, "fp32", True)
    assert len([*(tmp_path / "chunks").iterdir()]) == 1
    (tmp_path / "overlays" / "000003.jpg").rmdir()
    assert offline.predict(folder, pictures, tmp_path, "fp32", True) == (4, 0)


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


def test_answers_for_other_images_are_not_lost(here, registry, pictures, tmp_path):
    folder = registry.fetch(registry.holder("parts", "champion"))
    out = tmp_path / "out"
    offline.predict(folder, pictures[:2], out, "fp32", False)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(ManifestError, match=r"answers for other images .* another folder as --out"):
        offline.predict(folder, pictures[2:], out, "fp32", False)
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    offline.predict(folder, pictures[1:], out, "fp32", False)  # some are the same: a folder changed


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
