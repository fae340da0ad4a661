"""What became of the files that masks were asked from: one record of counts, kept with the run.

It travels in the metadata of a manifest's table, so that whoever has the manifest can say it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import pyarrow as pa

from assay.typed import from_json, to_json

_KEY = b"mask_account"


@dataclass(frozen=True, kw_only=True)
class MaskAccount:
    """Counts of one kind of masks, over all images."""

    images: int = 0
    pixels: int = 0
    """Of all images."""
    by_rule: int = 0
    """Images whose mask a rule made."""
    given: int = 0
    """Images with a mask of a given file."""
    corrected: int = 0
    """Images whose mask a person changed after it was written."""
    without: int = 0
    """Images without a given mask, taken as free of defects (masks.missing empty)."""
    passed_over: int = 0
    """Those of them in folders where others have one."""
    unmarked: int = 0
    """Images in whose mask nothing is marked, those without one among them."""
    nearly_full: int = 0
    """Images of which more than 95 % is marked."""
    framed: int = 0
    """Images that are marked at all four corners, and not all over."""
    marked_px: Mapping[str, int] = field(default_factory=dict)
    """Pixels by class; `void` are those that nobody judged."""
    values: Mapping[str, int] = field(default_factory=dict)
    """Pixels of given mask files by the value that they hold, the commonest of each file."""
    soft: int = 0
    """Mask files with values between background and mark, cut at the threshold."""
    faint: int = 0
    """Marks in them that nowhere reach the threshold, and are lost."""
    marks: int = 0
    """Marks of COCO, LabelMe or VOC files that were drawn."""
    crowds: int = 0
    """Those of them that stand for a crowd."""
    specks: int = 0
    """Those of them that lie within one pixel and draw none."""
    ignored: int = 0
    """Those of them that are to be ignored, and void."""
    flagged: int = 0
    """LabelMe files that set a flag, of the image or of a shape."""
    cornered: int = 0
    """Marks with coordinates that were looked at, where none lies further than 100 pixels from the corner of larger images."""
    by_bare_name: int = 0
    """Images that a COCO file lists under another folder."""
    unlisted: int = 0
    """Images that the COCO file does not list (among `without`)."""
    strangers: int = 0
    """Images that the COCO file lists and that are not in the data."""
    stranger_marks: int = 0
    """Marks of those."""
    unused_files: int = 0
    """Mask files that the pattern fits, and that are no image's."""
    other_kinds: Mapping[str, int] = field(default_factory=dict)
    """Mask files of kinds that are no class."""
    first: Mapping[str, str] = field(default_factory=dict)
    """An example of each count that was worth one, by its name."""

    @property
    def share(self) -> float:
        """Share of the pixels that are marked."""
        marked = sum(num for name, num in self.marked_px.items() if name != "void")
        return marked / max(self.pixels, 1)

    def sentences(self) -> list[str]:
        """Say what was not used, or was used with a doubt."""
        doubts = {
            "without": f"{self.without} of {self.images} images have no mask and count as free of defects",
            "passed_over": f"{self.passed_over} of them lie in folders where other images have one, and may have lost theirs",
            "by_bare_name": f"{self.by_bare_name} images were found in the COCO file by their file name alone, under another folder",
            "stranger_marks": f"{self.stranger_marks} marks of {self.strangers} images that are not in the data were not used",
            "unused_files": f"{self.unused_files} mask files are no image's and were not used",
            "soft": f"{self.soft} mask files have values between background and mark, which were cut at the threshold",
            "faint": f"{self.faint} faint marks in them nowhere reach the threshold and were lost",
            "specks": f"{self.specks} marks lie within one pixel and draw none",
            "ignored": f"{self.ignored} marks that are to be ignored (COCO's ignore, VOC's difficult) are void: where nothing else is marked, they neither teach nor are judged",
            "flagged": f"{self.flagged} LabelMe files set flags, which were not used",
            "cornered": f"{self.cornered} marks, all whose coordinates were looked at, lie within 100 pixels of the corner of larger images, as they would in per cent",
            "nearly_full": f"{self.nearly_full} masks mark more than 95 % of their image",
            "framed": f"{self.framed} masks mark all four corners of their image and leave out what lies between, as where light and dark are exchanged",
            "corrected": f"{self.corrected} masks were corrected by a person and are used as they stand",
        }
        lines = [text + self._example(name) for name, text in doubts.items() if getattr(self, name)]
        absent = [name for name, num in self.marked_px.items() if not num]
        if absent:
            lines.append(f"no pixel is marked as {', '.join(absent)}")
        if self.other_kinds:
            kinds = ", ".join(f"{name} ({num})" for name, num in sorted(self.other_kinds.items()))
            lines.append(f"mask files of kinds that are no class were not used: {kinds}")
        return lines

    def _example(self, name: str) -> str:
        return f", first {self.first[name]}" if name in self.first else ""


def add(accounts: Sequence[MaskAccount]) -> MaskAccount:
    """Add up counts; of examples the first stays."""
    total: dict[str, object] = {}
    for entry in fields(MaskAccount):
        values = [getattr(account, entry.name) for account in accounts]
        if entry.name == "first":
            total["first"] = {k: v for value in reversed(values) for k, v in value.items()}
        elif values and isinstance(values[0], Mapping):
            names = dict.fromkeys(name for value in values for name in value)
            total[entry.name] = {name: sum(v.get(name, 0) for v in values) for name in names}
        else:
            total[entry.name] = sum(values)
    return MaskAccount(**total)  # type: ignore[arg-type]


def keep(table: pa.Table, accounts: Mapping[str, MaskAccount]) -> pa.Table:
    """Return a manifest's table that bears the accounts of its masks, by kind."""
    plain = {kind: to_json(account, sparse=True) for kind, account in accounts.items()}
    metadata = dict(table.schema.metadata or {}) | {_KEY: json.dumps(plain).encode()}
    return table.replace_schema_metadata(metadata)


def of_table(table: pa.Table) -> dict[str, MaskAccount]:
    """Read the accounts that a manifest's table bears, by kind."""
    plain = (table.schema.metadata or {}).get(_KEY)
    kinds = json.loads(plain) if plain else {}
    return {kind: from_json(MaskAccount, value) for kind, value in kinds.items()}
