"""Masks: which class each pixel of an image is, made by a rule (`heuristic`) or given by the user.

    <folder>/
        <id>.png          one mask per image, 8-bit grey: 0 background, i + 1 class i, 254 nobody knows
        <id>.json         what it was made of; see `record`
        agreement.csv     heuristic masks: id, share of pixels marked, agreement of the voters
        contact.png       heuristic masks: up to 24 layers with their outlines, to look at

With one class its pixels are written as 255, so that an editor shows them; 1 and 255 both count as
the class when the file is read. A mask is made anew when its image, its given file or the rule is
another; one that a person corrected is read back and never written again.
"""

import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from assay.config import fingerprint, to_dict
from assay.data.images.decode import Rgb, read, write_png
from assay.data.images.entry import page_of
from assay.data.manifest import Manifest
from assay.data.masks import account, contact
from assay.data.masks.account import MaskAccount
from assay.data.masks.given import open_mask
from assay.data.masks.header import Stand, read_stand
from assay.data.masks.record import (
    MaskRecord,
    find_mask,
    make_key,
    remove,
    write_mask,
    write_record,
)
from assay.data.masks.rules import MaskConfig, make
from assay.data.masks.sources import MaskSource, check_size, find_sources
from assay.errors import MaskError
from assay.files import write_table
from assay.levels import VOID
from assay.shapes import UInt8

MAX_SHARE = 0.95
"""Share of all pixels above which masks are refused: the threshold looks the wrong way."""


@dataclass(frozen=True)
class PreparedMasks:
    """The masks' files, in the order of the manifest's rows, and what became of what was given."""

    paths: list[Path]
    account: MaskAccount


class _Image(NamedTuple):
    """An image that needs a mask: its id, its file, and the hash of its content."""

    id: str
    path: Path
    content: str

    def read(self) -> Rgb:
        """Decode it."""
        return read(self.path, page=page_of(self.content))

    def stand(self) -> Stand:
        """Read its size and orientation."""
        return read_stand(self.path, page_of(self.content))


class _Entry(NamedTuple):
    """A mask as it stands now, and whether it was written just now."""

    record: MaskRecord
    is_fresh: bool


def prepare(manifest: Manifest, root: Path, config: MaskConfig, folder: Path) -> PreparedMasks:
    """Write the mask of each image below `folder` where there is none of the same content.

    Raises:
        MaskError: a mask is missing, unreadable, of another size or orientation than its image, or
            holds values that are not what the settings say; a mark draws elsewhere than it says; the
            image under a corrected mask changed; or all masks together are empty or nearly full, and
            then those that were written now are removed again.
        ImageError: an image cannot be read.
    """
    columns = (manifest.column(name) for name in ("id", "image", "content"))
    images = [_Image(name, Path(path), key) for name, path, key in zip(*columns, strict=True)]
    paths = [folder / file_name(image.id) for image in images]
    sources, unused = None, MaskAccount()
    if config.files:
        sources, unused = find_sources([image.path for image in images], root, config)

    def settle(i: int) -> _Entry:
        return _settle(images[i], paths[i], config, sources[i] if sources else None)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        entries = list(pool.map(settle, range(len(images))))
    total = account.add([unused, *(entry.record.account for entry in entries)])
    fresh = [path for path, entry in zip(paths, entries, strict=True) if entry.is_fresh]
    if sources is None and fresh:
        _write_overview(images, paths, entries, config, folder)
    _check_share(total, config, folder, fresh)
    return PreparedMasks(paths, total)


def read_masks(
    manifest: Manifest, root: Path, rules: Mapping[str, MaskConfig], storage: Path
) -> Manifest:
    """Return the manifest with masks of each kind, copies of which are kept below the folder of the runs.

    Args:
        manifest: The images.
        root: The folder that they were found in, or a table in it.
        rules: Where masks of each kind come from, or how they are made; all of the same classes.
        storage: The folder of the runs.

    Raises:
        MaskError: as `prepare` does.
    """
    folder, masks = root if root.is_dir() else root.parent, {}
    for kind, rule in rules.items():
        copies = storage / "masks" / f"{kind}-{fingerprint([str(root), to_dict(rule)])}"
        masks[kind] = prepare(manifest, folder, rule, copies)
    classes = next(iter(rules.values())).classes
    return add_masks(manifest, masks, classes, storage / "hashes.sqlite")


def add_masks(
    manifest: Manifest, masks: Mapping[str, PreparedMasks], classes: Sequence[str], cache: Path
) -> Manifest:
    """Return the manifest with masks of each kind, and what became of what was given."""
    paths = {kind: prepared.paths for kind, prepared in masks.items()}
    table = manifest.with_masks(paths, classes, cache).table
    accounts = {kind: prepared.account for kind, prepared in masks.items()}
    return Manifest(account.keep(table, accounts))


def file_name(name: str) -> str:
    """Name the file of an image's mask; ids that are no plain file names get a hash, to stay apart."""
    plain = re.sub(r"[^\w.-]+", "_", name)[-100:]
    if plain != name or name.startswith("."):
        plain = f"{plain.lstrip('.')}-{blake2b(name.encode(), digest_size=6).hexdigest()}"
    return f"{plain}.png"


def _settle(image: _Image, target: Path, config: MaskConfig, source: MaskSource | None) -> _Entry:
    """Take the mask that stands there, or write it."""
    key = make_key(image.content, to_dict(config), source.key() if source else None)
    record, is_corrected = find_mask(target, key, image.path)
    if record is None:
        record = _write(image, target, config, source, key)
        return _Entry(record, True)
    if not is_corrected:
        return _Entry(record, False)
    mask = open_mask(target, config.classes)
    check_size(mask, image.stand().size, target, image.path)
    if not record.written:  # it was put here without a record
        if source is None:
            record = replace(record, agreement=make(image.read(), config)[1])
        write_record(target, record)
    counted = _count(mask, config, corrected=1, first={"corrected": str(target)})
    return _Entry(replace(record, account=counted), False)


def _write(
    image: _Image, target: Path, config: MaskConfig, source: MaskSource | None, key: str
) -> MaskRecord:
    """Write a mask by the rule, or as it was given."""
    agreement = None
    if source is None:
        marked, agreement = make(image.read(), config)
        mask = marked.astype(np.uint8)
        counted = _count(mask, config, by_rule=1)
    else:
        mask, drawn = source.read(image.stand())
        counted = account.add([drawn, _count(mask, config)])
    record = MaskRecord(key=key, agreement=agreement, account=counted)
    if len(config.classes) == 1:
        mask = np.where(mask == 1, np.uint8(255), mask)
    write_mask(target, mask, record)
    return record


def _count(mask: UInt8[np.ndarray, "h w"], config: MaskConfig, **fields: Any) -> MaskAccount:
    """Count what is marked, of one image."""
    num = np.bincount(mask.ravel(), minlength=VOID + 1)
    names = dict(enumerate(config.classes, start=1)) | ({VOID: "void"} if num[VOID] else {})
    marked = int(num[1:VOID].sum())
    corners = mask[[0, 0, -1, -1], [0, -1, 0, -1]]
    return MaskAccount(
        images=1,
        pixels=mask.size,
        unmarked=int(not marked),
        framed=int(bool(num[0]) and bool(((corners > 0) & (corners != VOID)).all())),
        nearly_full=int(marked > MAX_SHARE * mask.size),
        marked_px={name: int(num[i]) for i, name in names.items()},
        **fields,
    )


def _write_overview(
    images: Sequence[_Image],
    masks: list[Path],
    entries: list[_Entry],
    config: MaskConfig,
    folder: Path,
) -> None:
    """Write the table of agreements and the contact sheet."""
    names = [image.id for image in images]
    agreements = [entry.record.agreement or 0.0 for entry in entries]
    shares = [entry.record.account.share for entry in entries]
    table = pa.table({"id": names, "share": shares, "agreement": agreements})
    write_table(folder / "agreement.csv", table)
    tiles = []
    for i in contact.choose_layers(agreements):
        mask = open_mask(masks[i], config.classes) > 0
        caption = f"agreement {agreements[i]:.2f}, marked {shares[i]:.2%}"
        tiles.append(contact.draw_tile(images[i].read(), mask, (names[i], caption)))
    write_png(folder / "contact.png", contact.draw_sheet(tiles))


def _check_share(total: MaskAccount, config: MaskConfig, folder: Path, fresh: list[Path]) -> None:
    share = total.share
    if 0 < share <= MAX_SHARE:
        return
    for mask in fresh:
        remove(mask)
    if total.without == total.images:
        raise MaskError(
            f"None of the {total.images} images has a mask by {config.files!r}, which starts from the folder of the images; correct it."
        )
    what = "are empty" if share == 0 else f"cover {share:.1%} of all pixels"
    if config.files:
        remedy = (
            "check --masks.values (binary, index or alpha) and --masks.classes against the files"
        )
    else:
        remedy = (
            f"look at {folder / 'contact.png'} and change the threshold's direction (--masks.dark or --masks.no-dark, it is "
            f"{config.dark}), --masks.threshold ({config.threshold}) or --masks.min-area-px ({config.min_area_px})"
        )
    raise MaskError(
        f"The masks of all {total.images} images {what}, and nothing is learned from such; {remedy}."
    )
