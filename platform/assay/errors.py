"""Errors a user can cause, and how they are said.

    AssayError            one sentence: what was got, what is allowed, what to do; exit code 2
    |- ConfigError        a setting, or a combination of settings
    |- ManifestError      the list of images: missing root, columns, names that do not parse
    |- ImageError         one image file: unreadable, truncated, too large
    |- MaskError          a mask: missing, unreadable, of another size, values that are no class
    |- SplitError         groups that cannot be divided, or that stand on two sides
    |- StoreError         the pixel store: disk space, damaged or foreign entries
    |- ResourceError      workers, CPUs, GPUs or memory that are not there
    |- CheckpointError    no checkpoint that can be resumed
    |- RunError           a run directory: in use, newer schema, failed
    |- DiskError          a disk that is full, may not be written, or has something else in a file's place
    |- PredictionsError   a predictions table that cannot be judged
    |- BundleError        a bundle that does not open or does not verify
    |- QuantizeError      a graph that loses too much in 8 bits
    |- RegistryError      a registry that cannot be used, or that refuses a bundle
    '- ServeError         a server that cannot be started, or an answer that it refused

Whatever is not an AssayError, nor an OSError of a user's file (see `disk_faults`), is a bug of ours
and keeps its traceback.
"""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STOPPED = 130
"""Exit code of a program that Ctrl-C ended, as shells give it."""

CLOSED = 141
"""Exit code of a program whose output nobody reads any more."""

_PACKAGE = Path(__file__).parent

OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)
"""Faults of a disk, which some libraries tell without the file."""


class AssayError(Exception):
    """A mistake the user can mend; its text is one sentence for the user."""


@contextmanager
def one_sentence() -> Iterator[None]:
    """End the program as its user would have it: never with a traceback of what the user can mend.

    Exits with 2 and one sentence after an AssayError or a fault of a disk, with 130 after Ctrl-C, and
    with 141 and nothing where the output was closed (`assay runs | head`).
    """
    try:
        with disk_faults():
            yield
            if sys.stdout is not None:  # it was closed before this began
                sys.stdout.flush()
    except AssayError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("Stopped; the same command goes on where this one ended.", file=sys.stderr)
        raise SystemExit(STOPPED) from None
    except BrokenPipeError:
        nothing = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):  # what they still hold is written at the very end
            os.dup2(nothing, stream.fileno())
        raise SystemExit(CLOSED) from None


@contextmanager
def disk_faults() -> Iterator[None]:
    """Say in a sentence what a disk refused, wherever a file was opened, read or written.

    Raises:
        DiskError: in the place of an OSError that names a file, or that is a fault of disks.
    """
    try:
        yield
    except OSError as error:
        path = error.filename if isinstance(error.filename, str | os.PathLike) else ""
        ours = path and Path(path).is_relative_to(_PACKAGE)  # a file of the package: a bug
        if ours or not (path or error.errno in OF_DISKS):
            raise
        raise DiskError(
            f"{path or 'A file'} cannot be read or written ({error.strerror or error}); mend that, and give the same command again: "
            "what was written before is kept."
        ) from error


class ConfigError(AssayError):
    """A setting, or a combination of settings, that cannot be met."""


class ManifestError(AssayError):
    """The list of images cannot be built or read."""


class ImageError(AssayError):
    """One image file cannot be read."""


class MaskError(AssayError):
    """A mask is missing, or does not say of each pixel of its image which class it is."""


class SplitError(AssayError):
    """Groups cannot be divided into the sets asked for."""


class StoreError(AssayError):
    """The pixel store cannot be built or read."""


class ResourceError(AssayError):
    """More workers, CPUs, GPUs, memory or disk were asked for than there are."""


class CheckpointError(AssayError):
    """A run has no checkpoint that can be resumed."""


class RunError(AssayError):
    """A run directory cannot be used."""


class DiskError(AssayError):
    """A disk is full, may not be written, or has something else in a file's place."""


class PredictionsError(AssayError):
    """A predictions table cannot be judged."""


class BundleError(AssayError):
    """A bundle does not open or does not verify."""


class QuantizeError(AssayError):
    """A graph loses too much in 8 bits."""


class RegistryError(AssayError):
    """A registry cannot be used, or refuses a bundle."""


class ServeError(AssayError):
    """A server cannot be started, or it refused a request."""
