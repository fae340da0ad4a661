"""Walk a folder of images or masks: what counts, what is left out, and what nobody can read.

Files and folders that systems and programs leave behind (hidden ones, thumbnails, recycle bins) are
left out and counted, and so are images of formats that are not read and files that are no images by
their names. A link is followed. No folder is
entered twice: two links to one, or a link to a folder above, would list images again, in the worst
case without end.
"""

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

from assay.errors import ManifestError
from assay.files import NO_FILE

LEFTOVERS = {
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "__macosx",
    "@eadir",
    "#recycle",
    "lost+found",
    "$recycle.bin",
    "system volume information",
}
"""What systems put beside files, in small letters, beyond names that begin with a dot."""


UNREAD = re.compile(
    r"\.(gif|jfif|jpe|jfi|jif|mpo|heic|heif|hif|avif|jp2|j2k|j2c|jpx|jxl|jxr|apng|dib|ico|pcx|xcf|dng|cr2|cr3|nef|arw|orf|rw2|raf|raw"
    r"|ppm|pgm|pbm|pnm|pam|tga|psd|exr|hdr|dcm|dicom|svg|btf|tf2|tf8|fits?|npy|czi|nd2|lif|vsi)$",
    re.IGNORECASE,
)
"""Endings of images that are not read."""


NOTES = ".json"
"""What lies beside images to say something of them, as marks and the truth of those that are drawn; nobody takes it for an image."""


@dataclass(frozen=True, order=True)
class Stranger:
    """An entry that should be an image or a folder and is none, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Walk:
    """What stands below a folder."""

    files: list[Path] = field(default_factory=list)
    """Regular files of the suffixes asked for, sorted."""
    strangers: list[Stranger] = field(default_factory=list)
    left_out: list[Path] = field(default_factory=list)
    """Hidden and system files and folders, of any suffix."""


class Entry(NamedTuple):
    """What stands at one place below a folder."""

    kind: Literal["file", "stranger", "left out", "unread", "unknown"]
    path: Path


def find_files(root: Path, suffixes: tuple[str, ...] = ()) -> list[Path]:
    """List the files below a folder, sorted, and say how many entries are left out.

    Args:
        root: the folder; its own name may be a hidden one.
        suffixes: in small letters, that count; none: all files.

    Raises:
        ManifestError: it is no folder, one cannot be read or is reached twice, or there is a stranger.
    """
    reason = why_unreadable(root)
    if reason != "is a folder":
        raise ManifestError(f"{show(root)} {reason or 'is a file'}; give a folder.")
    walk = walk_folder(root, suffixes)
    if walk.strangers:
        first = walk.strangers[0]
        more = f" ({len(walk.strangers)} such in all)" if len(walk.strangers) > 1 else ""
        raise ManifestError(
            f"{show(first.path)} {first.reason}{more}; mend it, or move it out of {show(root)}."
        )
    return walk.files


def walk_folder(root: Path, suffixes: tuple[str, ...] = ()) -> Walk:
    """Walk all folders below one, and say how many entries are left out.

    Raises:
        ManifestError: a folder cannot be read or is reached twice.
    """
    walk = Walk()
    for entry in walk_entries(root, suffixes):
        if entry.kind == "file":
            walk.files.append(entry.path)
        elif entry.kind == "stranger":
            walk.strangers.append(Stranger(entry.path, why_unreadable(entry.path)))
        else:
            walk.left_out.append(entry.path)
    walk.strangers.sort()
    return walk


def walk_entries(root: Path, suffixes: tuple[str, ...] = ()) -> Iterator[Entry]:
    """Yield what `walk_folder` lists, in the order of paths, with one folder's entries in memory at a time and those above it.

    Says at its end how many entries are left out, how many images are of formats that are not read, and how many files are
    no images by their names.

    Raises:
        ManifestError: a folder cannot be read or is reached twice.
    """
    real = os.path.realpath(root)
    passed: dict[str, tuple[int, Path]] = {}
    for entry in _below(str(root), real, real, {real: str(root)}, suffixes):
        if entry.kind in _PASSED_OVER:
            num, first = passed.get(entry.kind, (0, entry.path))
            passed[entry.kind] = num + 1, min(first, entry.path)
        if entry.kind not in ("unread", "unknown"):
            yield entry
    for kind, (num, first) in sorted(passed.items()):
        _say_passed_over(str(root), kind, num, first)


def _below(
    folder: str, real: str, real_root: str, reached: dict[str, str], suffixes: tuple[str, ...]
) -> Iterator[Entry]:
    for entry in _entries(folder):
        path = Path(entry.path)
        if is_left_out(entry.name):
            yield Entry("left out", path)
            continue
        counts = entry.name.lower().endswith(suffixes or "")
        kind = _kind(entry)
        if kind == "folder" and is_text(entry.name):
            inner = _enter(entry, real, real_root, reached)
            num_files = 0
            for below in _below(entry.path, inner, real_root, reached, suffixes):
                num_files += below.kind == "file"
                yield below
            # a folder may bear any name, but one without an image was meant to be an image
            if suffixes and counts and not num_files:
                yield Entry("stranger", path)
        elif kind == "file" and counts and is_text(entry.name):
            yield Entry("file", path)
        elif kind in ("folder", "broken") or counts:
            yield Entry("stranger", path)
        elif suffixes and UNREAD.search(entry.name):
            yield Entry("unread", path)
        elif suffixes and kind == "file" and not entry.name.lower().endswith(NOTES):
            yield Entry("unknown", path)


def is_left_out(name: str) -> bool:
    """Tell whether a name is hidden or a system's."""
    return name.startswith(".") or name.lower() in LEFTOVERS


def is_text(name: str) -> bool:
    """Tell whether a name is UTF-8; of others Python keeps bytes that no table can hold."""
    return name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name)


def show(path: Path | str) -> str:
    """Return a path for a sentence: as it is where it can be printed, else escaped."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


def why_unreadable(path: Path) -> str:
    """Say why a path is no file that can be read, as the rest of a sentence; empty if it is one.

    Nothing is opened: a pipe would wait for its other end.
    """
    if not is_text(str(path)):
        return "has a name that is no UTF-8"
    try:
        if path.is_file():
            return ""
        if path.is_dir():
            return "is a folder"
        if path.exists():
            return f"is {NO_FILE}"
        return "is a link to nothing" if path.is_symlink() else "does not exist"
    except (OSError, ValueError) as error:  # no right to look, too long, a NUL character
        return f"cannot be looked at ({getattr(error, 'strerror', None) or error})"


def _entries(folder: str) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise ManifestError(
            f"The folder {show(folder)} cannot be read ({error.strerror}); give yourself the right to read it, or move it "
            "out of the data."
        ) from None


def _kind(entry: "os.DirEntry[str]") -> Literal["folder", "file", "broken", "other"]:
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
        return "other" if os.path.exists(entry.path) else "broken"
    except OSError:  # a link to itself, or to where one may not look
        return "broken"


def _enter(
    entry: "os.DirEntry[str]", real_parent: str, real_root: str, reached: dict[str, str]
) -> str:
    """Return a folder's real path, once it is known that nobody was there before."""
    if not entry.is_symlink():
        real = os.path.join(real_parent, entry.name)
    else:
        real = os.path.realpath(entry.path)
    for inner in (real_parent, real_root):
        if entry.is_symlink() and f"{inner}{os.sep}".startswith(real.rstrip(os.sep) + os.sep):
            raise ManifestError(
                f"The link {show(entry.path)} leads to {show(real)}, which holds the link itself, so that a walk would not end; "
                "remove the link."
            )
    other = reached.setdefault(real, entry.path)
    if other != entry.path:
        raise ManifestError(
            f"{show(entry.path)} and {show(other)} are one folder, to which a link leads, so that its files would count twice; "
            "remove the link."
        )
    return real


_PASSED_OVER = {
    "left out": ("hidden or system entry", "hidden or system entries", ""),
    "unread": (
        "image",
        "images",
        "; files of this name are not read: convert or rename them if they count",
    ),
    "unknown": (
        "other file",
        "other files",
        "; by their names they are no images: rename them if they count",
    ),
}
"""How one and several of a kind are called, and what is said besides."""


@lru_cache(maxsize=1024)
def _say_passed_over(root: str, kind: str, num: int, first: Path) -> None:
    """Say once what does not count."""
    one, several, why = _PASSED_OVER[kind]
    what = f"{num} {one} is" if num == 1 else f"{num} {several} are"
    print(f"{what} left out below {show(root)}, first {show(first)}{why}.", file=sys.stderr)
