"""Beside each mask: what it was made of, and what was written, so that only a person's changes are kept.

    <id>.png    the mask
    <id>.json   key (content of the image and of what was given, and settings), digests of every file
                written here, and what was counted

A mask whose content was never written here is a person's. The record is written before its mask and
read after it: so whoever finds a mask finds its digest in the record, also beside another run.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from assay.data.masks.account import MaskAccount
from assay.errors import MaskError
from assay.files import read_bytes, write_json, write_whole
from assay.shapes import UInt8
from assay.typed import MisfitError, from_json, to_json

SCHEMA = 1
"""Goes up where the same image and settings give another mask."""


@dataclass(frozen=True, kw_only=True)
class MaskRecord:
    """What stands beside a mask."""

    key: str
    written: tuple[str, ...] = ()
    """SHA-256 of each file that was written under this name, the newest last."""
    agreement: float | None = None
    """Of the voters, where a rule made it."""
    account: MaskAccount = MaskAccount()  # noqa: RUF009  # frozen
    """What was counted when it was written."""


def make_key(content: str, settings: Any, source: Any) -> str:
    """Name what a mask is made of: the image's content, the settings and what was given."""
    what = json.dumps([SCHEMA, content, settings, source], sort_keys=True)
    return hashlib.sha256(what.encode()).hexdigest()


def find_mask(target: Path, key: str, image: Path) -> tuple[MaskRecord | None, bool]:
    """Return the record of the mask that stands there, and whether a person changed it; None: make it.

    Raises:
        MaskError: a person changed it and its image, or what was given, is another one since; or its
            record is damaged.
    """
    try:
        digest = hashlib.sha256(read_bytes(target)).hexdigest()
    except FileNotFoundError:
        return None, False
    except OSError as error:
        raise MaskError(f"The mask {target} cannot be read ({error.strerror}); mend it.") from None
    record = _read(target)
    if record is None:
        return MaskRecord(key=key), True
    if digest in record.written:
        is_newest = digest == record.written[-1] and key == record.key
        return (record if is_newest else None), False
    if record.key != key:
        raise MaskError(
            f"The mask {target} was corrected by a person, and {image} or its given mask changed since, so that the correction may be "
            f"of another image; delete {target} to have it made anew, or {_path(target)} to keep it as it stands."
        )
    return record, True


def _read(target: Path) -> MaskRecord | None:
    path = _path(target)
    try:
        return from_json(MaskRecord, json.loads(read_bytes(path)))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError, MisfitError) as error:
        raise MaskError(
            f"{path} is damaged ({error}); delete it to keep {target} as it stands, or both to have it made anew."
        ) from None


def write_mask(target: Path, mask: UInt8[np.ndarray, "h w"], record: MaskRecord) -> None:
    """Write a mask and its record, which keeps what was written before.

    Raises:
        MaskError: they cannot be written.
    """
    content = cv2.imencode(".png", np.ascontiguousarray(mask))[1].tobytes()
    digest = hashlib.sha256(content).hexdigest()
    before = _read(target)
    older = [other for other in (before.written if before else ()) if other != digest]
    write_record(target, MaskRecord(**vars(record) | {"written": (*older, digest)}))
    _write(target, lambda: write_whole(target, content))


def write_record(target: Path, record: MaskRecord) -> None:
    """Write the record of a mask.

    Raises:
        MaskError: it cannot be written.
    """
    _write(target, lambda: write_json(_path(target), to_json(record, sparse=True)))


def remove(target: Path) -> None:
    """Remove a mask and its record."""
    target.unlink(missing_ok=True)
    _path(target).unlink(missing_ok=True)


def _write(target: Path, write: Any) -> None:
    try:
        write()
    except OSError as error:
        raise MaskError(
            f"The mask {target} cannot be written ({error.strerror}); make room, or name another --storage."
        ) from None


def _path(target: Path) -> Path:
    return target.with_suffix(".json")
