"""Annotations of a set in JSON, one file for each of train, val and test: images, their labels and groups.

    {"metainfo": {"classes": ["negative", "positive"]},
     "data_list": [{"img_path": "train/1015272/1015272-0.jpeg", "gt_label": 0, "group_id": "1015272"}]}

A row has the fields `label` (the class's name), `group_id` (its group, unless others are named), `split` (the file's name)
and what an entry holds besides (texts and numbers). Paths are relative to the folder of the file, or to the one above where that is called
annotations.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from assay.data.folder import SPLITS, ImageRow
from assay.data.hints import SET_WORDS
from assay.data.table import value_of
from assay.data.walk import show, why_unreadable
from assay.errors import ManifestError
from assay.files import read_json

FORM = "give metainfo.classes (a list of names) and data_list (entries of img_path, gt_label and group_id)"


def find_annotations(root: Path) -> list[Path]:
    """Return the annotation files that a data.root names: itself, or those of a folder; none where it is something else.

    Raises:
        ManifestError: beside them lies a file that is a set's by another name.
    """
    if root.suffix.lower() == ".json":
        return [root]
    if not root.is_dir():
        return []
    folder = root / "annotations" if (root / "annotations").is_dir() else root
    paths = [path for name in SPLITS if (path := folder / f"{name}.json").is_file()]
    for path in sorted(folder.glob("*.json")) if paths else ():
        if path.stem.lower() in SET_WORDS and path not in paths:
            raise ManifestError(
                f"{show(path)} is none of {', '.join(f'{name}.json' for name in SPLITS)}, beside {paths[0].name}, and its images would be passed over; rename it, or move it away."
            )
    return paths


def read_annotations(paths: Sequence[Path]) -> list[ImageRow]:
    """Read the rows of annotation files, one a set.

    Raises:
        ManifestError: a file is damaged or of another form, files have different classes, a label is none
            of them, an image is missing or listed twice, or a group is in two sets.
    """
    rows: list[ImageRow] = []
    classes: dict[Path, list[str]] = {}
    for path in paths:
        content = read_json(path, ManifestError, FORM)
        classes[path] = _classes(path, content)
        if classes[path] != classes[paths[0]]:
            raise ManifestError(
                f"{show(path)} has the classes {classes[path]} and {show(paths[0])} {classes[paths[0]]}; give both the same, in one order."
            )
        rows += _rows(path, content, classes[path])
    if not rows:
        raise ManifestError(f"{show(paths[0])} lists no image in data_list; add entries.")
    _refuse_repeats(rows)
    return rows


def _classes(path: Path, content: dict[str, Any]) -> list[str]:
    info, entries = content.get("metainfo"), content.get("data_list")
    names = info.get("classes") if isinstance(info, dict) else None
    texts = [n for n in names if isinstance(n, str) and n] if isinstance(names, list) else None
    if (
        texts is None
        or texts != names
        or len(set(texts)) < len(texts)
        or not isinstance(entries, list)
    ):
        raise ManifestError(f"{show(path)} is no list of annotated images; {FORM}.")
    return texts


def _rows(path: Path, content: dict[str, Any], classes: list[str]) -> list[ImageRow]:
    base = path.parent.parent if path.parent.name == "annotations" else path.parent
    split = {"split": path.stem} if path.stem in SPLITS else {}
    rows = []
    for number, entry in enumerate(content["data_list"], start=1):
        place = f"{show(path)} entry {number}"
        values = entry if isinstance(entry, dict) else {}
        name, label, group = (values.get(key) for key in ("img_path", "gt_label", "group_id"))
        is_group = type(group) in (str, int) and value_of(str(group)) is not None
        if not isinstance(name, str) or not name or not is_group:
            raise ManifestError(
                f"{place} is {str(entry)[:100]}; give img_path (a text) and group_id (a text or whole number)."
            )
        if type(label) is not int or not 0 <= label < len(classes):
            raise ManifestError(
                f"{place} has gt_label {label!r}, and metainfo.classes has {len(classes)}; give 0 to {len(classes) - 1}."
            )
        image = Path(os.path.normpath(base / name))
        if reason := why_unreadable(image):
            raise ManifestError(
                f"{place} names the image {show(image)}, which {reason}; give paths relative to {show(base)}."
            )
        plain = {key: str(v) for key, v in values.items() if isinstance(v, str | int | float)}
        others = {key: text for key, text in plain.items() if value_of(text) is not None}
        fields = others | split | {"label": classes[label], "group_id": str(group)}
        for key in others.keys() & {"label", "split"}:
            if others[key] != fields[key]:
                raise ManifestError(
                    f"{place} has the {key} {others[key]!r}, and by gt_label and the file's name it is {fields[key]!r}; correct one of them."
                )
        rows.append(ImageRow(Path(os.path.relpath(image, base)).as_posix(), image, fields))
    return rows


def _refuse_repeats(rows: Sequence[ImageRow]) -> None:
    """Refuse an image that is listed twice, and a group in two sets."""
    images: set[Path] = set()
    sets: dict[str, ImageRow] = {}
    for row in rows:
        if row.image in images:
            raise ManifestError(
                f"The image {show(row.image)} is listed more than once; list each image once."
            )
        images.add(row.image)
        other = sets.setdefault(row.fields["group_id"], row)
        if other.fields.get("split") != row.fields.get("split"):
            raise ManifestError(
                f"The group {row.fields['group_id']!r} is in two sets, by {other.id} in {other.fields.get('split')} and {row.id} in {row.fields.get('split')}; put all of its images into one."
            )
