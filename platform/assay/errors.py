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
    |- PredictionsError   a predictions table that cannot be judged
    |- BundleError        a bundle that does not open or does not verify
    |- QuantizeError      a graph that loses too much in 8 bits
    |- RegistryError      a registry that cannot be used, or that refuses a bundle
    '- ServeError         a server that cannot be started, or an answer that it refused

Whatever is not an AssayError is a bug of ours and keeps its traceback.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class AssayError(Exception):
    """A mistake the user can mend; its text is one sentence for the user."""


@contextmanager
def one_sentence() -> Iterator[None]:
    """End the program with exit code 2 and one sentence where the user can mend something."""
    try:
        yield
    except AssayError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


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
