"""Spellings: names that people would take for one and a program would not."""

import unicodedata
from collections.abc import Iterable

from assay.errors import ManifestError


def compose(name: str) -> str:
    """Return a name in one Unicode form (NFC): a copy from macOS has its accents apart."""
    return unicodedata.normalize("NFC", name)


def fold_name(name: str) -> str:
    """Return one spelling for names that differ in case, spaces, Unicode form, width or invisible marks alone."""
    if not name.isascii():
        name = "".join(c for c in name if unicodedata.category(c) != "Cf")
        # what casefold takes apart may have a shorter form again (Unicode, section 3.13, D146)
        for _ in range(2):
            name = unicodedata.normalize("NFKC", name.casefold())
    return " ".join(name.casefold().split())


def refuse_spellings(what: str, names: Iterable[str]) -> None:
    """Refuse names that are one name written in two ways.

    Raises:
        ManifestError: there are such; the text shows the first two so that their difference is seen.
    """
    spelled: dict[str, str] = {}
    for name in sorted(set(names)):
        other = spelled.setdefault(fold_name(name), name)
        if other != name:
            show = ascii if compose(other) == compose(name) else repr
            raise ManifestError(
                f"The {what} has the values {show(other)} and {show(name)}, which differ in case, spaces or Unicode form alone, "
                "so that one thing would count as two; write each in one way."
            )
