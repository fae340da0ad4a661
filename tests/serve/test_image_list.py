"""The list of what `assay predict` is given: files, folders, tables, and what is refused."""

import shutil
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assay.errors import ManifestError
from assay.serve import offline
from assay.serve.image_list import list_images, read_list, write_list


def listing(*paths: Path) -> tuple[list[Path], list[str]]:
    images, groups = zip(*list_images(paths), strict=True)
    return list(images), list(groups)


def test_an_image_is_not_judged_twice(pictures, tmp_path):
    folder = pictures[0].parent
    for twice in ([folder, pictures[0]], [pictures[1]] * 2, [folder / ".." / folder.name, folder]):
        with pytest.raises(ManifestError, match="is named twice, by itself or by a folder"):
            write_list(tmp_path / "list", twice)
    shutil.copytree(folder, tmp_path / "a")
    shutil.copytree(folder, tmp_path / "a-b")
    assert write_list(tmp_path / "list", [tmp_path / "a", tmp_path / "a-b"])[0] >= 8


def test_paths_are_images_folders_and_tables(pictures, tmp_path):
    folder = pictures[0].parent
    assert listing(folder) == (sorted(pictures), [""] * 4)
    (folder / "list.csv").write_text("image,label\n1.png,a\n0.png,b\n")
    assert listing(folder / "list.csv")[0] == [pictures[1], pictures[0]]
    pq.write_table(pa.table({"image": [str(pictures[3])]}), tmp_path / "list.parquet")
    assert listing(pictures[2], tmp_path / "list.parquet")[0] == pictures[2:]
    (tmp_path / "other.csv").write_text("file\na.png\n")
    (tmp_path / "empty").mkdir()
    mistakes = {"other.csv": "column 'image'", "none.png": "no file", "empty": "No image"}
    for name, sentence in mistakes.items():
        with pytest.raises(ManifestError, match=sentence):
            write_list(tmp_path / "list", [tmp_path / name])


def write(path, text):
    path.write_text(text)
    return path


def test_a_table_of_views_is_read_as_training_reads_it(tmp_path, pictures):
    names = [path.name for path in pictures]
    for path in pictures:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    expected = [tmp_path / name for name in names], ["01", "1", "", ""]
    lines = zip(names, ("01", "1", "", "nan"), strict=True)
    rows = [f"{name};{group}" for name, group in lines]
    listed = write(tmp_path / "excel.csv", "\ufeffimage;group\r\n" + "\r\n".join(rows))
    assert listing(listed) == expected
    listed = write(tmp_path / "tabs.tsv", "image\tgroup\n" + "\n".join(rows).replace(";", "\t"))
    assert listing(listed) == expected
    numbers = pa.table({"image": names, "group": [1.0, 10.0, None, float("nan")]})
    pq.write_table(numbers, tmp_path / "t.parquet")
    assert listing(tmp_path / "t.parquet")[1] == ["1", "10", "", ""]
    composed = write(tmp_path / "c.csv", "image,group\n0.png,Cle\u0301\n1.png,Cle\u0301\n")
    write_list(tmp_path / "list", [composed])
    [rows] = read_list(tmp_path / "list", 32)
    assert [group for _, group in rows] == ["Cl\u00e9"] * 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("image,group\n0.png,p1\n1.png,P1\n", r"'P1' \(at '.*1\.png'\) and 'p1' \(at '.*0\.png'\)"),
        ("image,group\n0.png,p1\n./0.png,p2\n", "2 times"),
        ("image,group\n0.png,p1\n,p2\n", r"row 2 \(line 3\) has no value in column 'image'"),
        ("image,group\n0.png,p1,\n", "line 2 has 3 cells"),
        ("image\n", "No image"),
    ],
)
def test_tables_that_say_two_things_are_refused(tmp_path, text, sentence):
    with pytest.raises(ManifestError, match=sentence):
        write_list(tmp_path / "list", [write(tmp_path / "t.csv", text)])


def test_a_folder_that_cannot_be_walked_is_refused(tmp_path):
    (tmp_path / "a").symlink_to(".")
    with pytest.raises(ManifestError, match="remove the link"):
        listing(tmp_path)


def test_a_list_is_read_as_it_was_written_whatever_its_names(tmp_path, monkeypatch):
    monkeypatch.setattr("assay.serve.image_list.ROWS", 64)
    names = [f"{i:03d}.png" for i in range(200)] + ["Pr\udcfcf.png"]
    for name in names:
        (tmp_path / "in" / name[0]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name[0] / name).touch()
    assert write_list(tmp_path / "list", [tmp_path / "in"]) == (201, False)
    parts = list(read_list(tmp_path / "list", 32))
    assert [len(part) for part in parts] == [32] * 6 + [9]
    paths = sorted(tmp_path / "in" / name[0] / name for name in names)
    assert [(Path(name), group) for part in parts for name, group in part] == [
        (path, "") for path in paths
    ]


@pytest.mark.parametrize("content", [b"no Parquet", None], ids=["no table", "a table of others"])
def test_a_table_of_others_under_the_name_of_the_list_is_kept(tmp_path, pictures, content):
    file = tmp_path / "images.parquet"
    if content is None:
        pq.write_table(pa.table({"image": ["a"], "label": ["b"]}), file)
    else:
        file.write_bytes(content)
    before = file.read_bytes()
    with pytest.raises(ManifestError, match="no list of this command"):
        write_list(file, pictures)
    assert file.read_bytes() == before


def test_memory_does_not_grow_with_the_list(tmp_path, monkeypatch):
    """Ten times the images take no more memory to list, to cut and to read than a tenth of their paths."""

    def endless(num):
        return lambda paths: ((Path(f"/images/{i:0100d}.png"), "") for i in range(num))

    monkeypatch.setattr("assay.serve.image_list.ROWS", 1024)
    peaks = []
    # now and then Python's table of names grows, as pathlib interns them, but not in two turns running
    for num in (20_000, 2_000, 20_000, 20_000):
        monkeypatch.setattr("assay.serve.image_list.list_images", endless(num))
        tracemalloc.start()
        assert write_list(tmp_path / "list", []) == (num, False)
        assert (
            sum(len(chunk["images"]) for chunk in offline._cut(tmp_path / "list", tmp_path, ""))
            == num
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert min(peaks[2:]) - peaks[1] < 0.1 * 100 * 18_000


def test_a_name_that_no_file_can_have_is_listed_beside_earlier_answers(tmp_path):
    pq.write_table(pa.table({"image": ["a\0b.png", "c.png"]}), tmp_path / "t.parquet")
    for _ in range(2):
        assert write_list(tmp_path / "list", [tmp_path / "t.parquet"]) == (2, False)
