"""Annotations in JSON, as the source of self-supervision has them: read, and refused in a sentence."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.data.annotated import find_annotations, read_annotations
from assay.data.manifest import DataConfig, read_manifest
from assay.data.split import draw_split
from assay.data.split_config import SplitConfig
from assay.errors import ManifestError
from assay.files import write_whole

CONFIG = DataConfig(group=("group_id",))
SETS = {"train": 4, "val": 2, "test": 2}


def make(root: Path, nested: bool = True) -> Path:
    """Write two photos of each of eight units, in sets, and their annotations."""
    unit = 0
    for name, num in SETS.items():
        entries = []
        for _ in range(num):
            unit += 1
            for view in range(2):
                path = f"{name}/{unit}/{unit}-{view}.jpeg"
                write_whole(root / path, f"{unit} {view}".encode())
                entries.append({"img_path": path, "gt_label": unit % 2, "group_id": f"{unit:03d}"})
        folder = root / "annotations" if nested else root
        content = {"metainfo": {"classes": ["negative", "positive"]}, "data_list": entries}
        write_whole(folder / f"{name}.json", json.dumps(content).encode())
    return root


@pytest.mark.parametrize(("nested", "below"), [(True, ""), (True, "annotations"), (False, "")])
def test_sets_labels_and_groups_are_read(tmp_path: Path, nested: bool, below: str) -> None:
    root = make(tmp_path, nested)
    manifest = read_manifest(
        DataConfig(root=root / below, group=("group_id",)), tmp_path / "hashes.sqlite"
    )
    assert manifest.classes == ["negative", "positive"]
    expected = []
    for path in sorted(path.relative_to(root).as_posix() for path in root.rglob("*.jpeg")):
        name, unit, _ = path.split("/")
        expected.append((path, ["negative", "positive"][int(unit) % 2], f"{int(unit):03d}", name))
    columns = [manifest.column(name) for name in ("id", "label", "group")]
    assert list(zip(*columns, manifest.declared_sets, strict=True)) == expected
    split = draw_split(manifest, SplitConfig())
    assert {name: len(split.rows(name)) for name in SETS} == {n: 2 * k for n, k in SETS.items()}


def test_groups_are_those_of_the_file_unless_others_are_named(tmp_path: Path) -> None:
    root = make(tmp_path)
    named = read_manifest(DataConfig(root=root), tmp_path / "hashes")
    assert named.column("group") == read_manifest(
        DataConfig(root=root, group=("group_id",)), tmp_path / "hashes"
    ).column("group")
    assert len(set(named.column("group"))) == sum(SETS.values()) < len(named)


def test_one_file_is_read_alone_and_what_it_holds_besides_can_be_kept(tmp_path: Path) -> None:
    make(tmp_path)
    path = tmp_path / "annotations/train.json"
    content = json.loads(path.read_text())
    for number, entry in enumerate(content["data_list"]):
        entry["camera"] = number % 3
    path.with_name("some.json").write_text(json.dumps(content))
    config = DataConfig(root=path.with_name("some.json"), group=("group_id",), domains=("camera",))
    manifest = read_manifest(config, tmp_path / "hashes.sqlite")
    assert manifest.declared_sets == [None] * 8  # its name is no set's
    assert sorted(set(manifest.column("domain.camera"))) == ["0", "1", "2"]


@pytest.mark.parametrize("value", [float("nan"), "NaN", "null", " ", "", None])
def test_what_is_no_value_in_a_table_is_none_here(tmp_path: Path, value: object) -> None:
    """A domain of rows without a value would be one of its own."""
    path = make(tmp_path) / "annotations/train.json"
    content = json.loads(path.read_text())
    for number, entry in enumerate(content["data_list"]):
        entry["camera"] = value if number == 3 else "left"
    path.write_text(json.dumps(content))
    config = DataConfig(root=path, group=("group_id",), domains=("camera",))
    with pytest.raises(ManifestError, match=r"No field 'camera' .* as --data\.domains\."):
        read_manifest(config, tmp_path / "hashes.sqlite")


def test_a_folder_with_other_json_files_is_one_of_images(tmp_path: Path) -> None:
    (tmp_path / "instances.json").write_text("{}")
    assert find_annotations(tmp_path) == []
    assert find_annotations(tmp_path / "missing") == []


def edit(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.pop("metainfo"), "is no list of annotated images; give metainfo.classes"),
        (lambda c: c.update(data_list={}), "is no list of annotated images"),
        (lambda c: c["metainfo"].update(classes=["a", "a"]), "is no list of annotated images"),
        (lambda c: c["metainfo"].update(classes=["no", "yes"]), "give both the same"),
        (lambda c: c["data_list"][1].update(gt_label=2), "entry 2 has gt_label 2.*give 0 to 1"),
        (lambda c: c["data_list"][1].update(gt_label="1"), "entry 2 has gt_label '1'"),
        (lambda c: c["data_list"][1].update(gt_label=True), "gt_label True"),
        (lambda c: c["data_list"][0].pop("group_id"), "entry 1 is .*give img_path"),
        (lambda c: c["data_list"][0].update(group_id=" NaN"), "entry 1 is .*and group_id"),
        (lambda c: c["data_list"].append(3), "entry 5 is 3; give img_path"),
        (lambda c: c["data_list"][0].update(img_path="no.jpeg"), "no.jpeg, which does not exist"),
        (lambda c: c["data_list"][0].update(img_path="val"), "which is a folder"),
        (lambda c: c["data_list"].append(c["data_list"][0]), "listed more than once"),
        (lambda c: c["data_list"][0].update(group_id="001"), "'001' is in two sets, by train/1/"),
        (
            lambda c: c["data_list"][1].update(label="negativ"),
            "entry 2 has the label 'negativ', and",
        ),
        (lambda c: c["data_list"][1].update(split="test"), "has the split 'test', and .* is 'val'"),
    ],
)
def test_what_does_not_fit_is_said_in_a_sentence(tmp_path: Path, change: Any, says: str) -> None:
    root = make(tmp_path)
    edit(root / "annotations/val.json", change)
    with pytest.raises(ManifestError, match=says) as caught:
        read_annotations(find_annotations(root))
    assert len(re.findall(r"[.;] [A-Z]", str(caught.value))) == 0
    assert str(caught.value).endswith(".")


def test_files_without_an_entry_and_conditions_are_refused(tmp_path: Path) -> None:
    root = make(tmp_path)
    with pytest.raises(ManifestError, match="conditions are for tables"):
        read_manifest(DataConfig(root=root, where=("a=b",)), tmp_path / "hashes.sqlite")
    path = root / "annotations/train.json"
    edit(path, lambda c: c.update(data_list=[]))
    with pytest.raises(ManifestError, match="lists no image"):
        read_annotations([path])


def test_damaged_files_are_refused(tmp_path: Path, damages: Any) -> None:
    path = make(tmp_path) / "annotations/test.json"
    for _ in damages(path):
        with pytest.raises(ManifestError, match=r"test\.json"):
            read_annotations([path])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


ENTRIES = st.lists(st.dictionaries(st.sampled_from(["img_path", "gt_label", "group_id"]), JSON))


@given(JSON | st.fixed_dictionaries({"classes": JSON | st.just(["a", "b"])}), ENTRIES)
def test_whatever_a_file_holds_is_refused_where_there_is_no_image(
    tmp_path_factory: pytest.TempPathFactory, metainfo: Any, entries: list[Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps({"metainfo": metainfo, "data_list": entries}))
    with pytest.raises(ManifestError):
        read_annotations([path])


@pytest.mark.parametrize("name", ["valid", "validation", "dev", "Val", "testing"])
def test_a_set_by_another_name_is_not_passed_over(tmp_path: Path, name: str) -> None:
    folder = make(tmp_path) / "annotations"
    (folder / "val.json").rename(folder / f"{name}.json")
    with pytest.raises(ManifestError, match=rf"{name}\.json is none of train\.json.*rename it"):
        find_annotations(tmp_path)
    (folder / f"{name}.json").rename(folder / "classes.json")
    assert [path.stem for path in find_annotations(tmp_path)] == ["train", "test"]
