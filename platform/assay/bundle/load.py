"""From where a bundle lies, here or elsewhere, to one that answers.

    ~/.cache/assay-bundles/<SHA-256 of bundle.json>/    a copy of the bundle at an URI

The SHA-256 of bundle.json stands for the whole bundle: it holds those of all its other files.
"""

import shutil
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from assay.bundle.bundle import Bundle, Variant
from assay.bundle.card import CACHE, NAME, read_card
from assay.errors import BundleError
from assay.fetch import check_sha256, download


def load(address: str | Path, sha256: str = "", variant: Variant = "fp32") -> Bundle:
    """Open what a run ships.

    Args:
        address: a run's folder, a bundle's, or the URI of a bundle's folder (https://, s3://, ...), which is
            copied to this machine.
        sha256: of the bundle's bundle.json, as 64 hex digits; "": not compared, which a bundle of the web
            must be. A copy that is here already is taken by it.
        variant: fp32, or the int8 graphs where the bundle has them.

    Raises:
        BundleError: there is none, or it does not open.
        ConfigError: the URI cannot be reached, or a file is another than its SHA-256 says.
    """
    if "://" in str(address):
        return Bundle(_copied(str(address).rstrip("/"), sha256.lower()), variant=variant)
    folder = next(
        (f for f in (Path(address), Path(address, "bundle")) if (f / NAME).exists()), None
    )
    if folder is None:
        raise BundleError(
            f"{address} holds no bundle; give the folder of a run that has ended, or of its bundle."
        )
    if sha256:
        check_sha256(folder / NAME, sha256.lower())
    return Bundle(folder, variant=variant)


def _copied(address: str, sha256: str) -> Path:
    """Return the folder of a bundle's copy, made by way of one that has a name of its own."""
    cache = CACHE.expanduser()
    if sha256 and (cache / sha256 / NAME).is_file():
        check_sha256(cache / sha256 / NAME, sha256)
        return cache / sha256
    hidden = cache / f".{uuid4().hex}"
    hidden.mkdir(parents=True)
    try:
        digest = download(f"{address}/{NAME}", hidden / NAME, sha256)
        for name, expected in read_card(hidden).sha256.items():
            download(f"{address}/{name}", hidden / name, expected, f"its {NAME}")
        with suppress(OSError):  # another process was first
            hidden.rename(cache / digest)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    return cache / digest
