"""`assay predict`: what is left over for the next time, what is bad, and what is neither judged nor written over."""

import csv
import json
import os
import struct

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import xxhash

from assay.bundle.bundle import Bundle
from assay.data.images.entry import MAGIC
from assay.errors import ManifestError, ResourceError
from assay.serve import offline
from assay.serve.image_list import list_images, write_list


@pytest.fixture
def here(here, monkeypatch):
    """Chunks are worked off in this process."""
    monkeypatch.setattr(offline, "_run", map)
    return here


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
def test_one_bad_image_takes_no_other_down(here, registry, pictures, tmp_path, listed):
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


def test_answers_for_other_images_are_not_lost(here, registry, pictures, tmp_path):
    folder = registry.fetch(registry.holder("parts", "champion"))
    out = tmp_path / "out"
    offline.predict(folder, pictures[:2], out, "fp32", False)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(ManifestError, match=r"answers for other images .* another folder as --out"):
        offline.predict(folder, pictures[2:], out, "fp32", False)
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    offline.predict(folder, pictures[1:], out, "fp32", False)  # some are the same: a folder changed
