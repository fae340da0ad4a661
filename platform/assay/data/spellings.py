"""Spellings: names that people would take for one and a program would not."""

import re
import unicodedata
from collections.abc import Mapping

from assay.errors import ManifestError

_LATIN = str.maketrans(
    # Cyrillic, then Greek: of its small letters the others look different, and stand for quantities
    "АВЕКМНОРСТУХІЈЅаеорсухіјѕΑΒΕΖΗΙΚΜΝΟΡΤΥΧο",  # noqa: RUF001
    "ABEKMHOPCTYXIJSaeopcyxijsABEZHIKMNOPTYXo",
)
"""Letters that look as Latin ones do, by the keyboard that writes them."""


def compose(name: str) -> str:
    """Return a name in one Unicode form (NFC): a copy from macOS has its accents apart."""
    return unicodedata.normalize("NFC", name)


def fold_name(name: str) -> str:
    """Return one spelling for names that differ in case, spaces, Unicode form, width, invisible marks or how a number is written.

    Programs write 1.0 for 1 where a column lacks values, spreadsheets 1,5 for 1.5. 01 is another part than 1, version 1.10
    another than 1.1, and 1,000 may be a thousand.
    """
    if not name.isascii():
        name = "".join(c for c in name if unicodedata.category(c) != "Cf")
        # what casefold takes apart may have a shorter form again (Unicode, section 3.13, D146)
        for _ in range(2):
            name = unicodedata.normalize("NFKC", name.casefold())
    words = " ".join(name.casefold().split())
    if "." not in words and "," not in words:
        return words
    return "/".join(map(_plain_number, words.split("/")))


def _plain_number(word: str) -> str:
    point = re.sub(r"^(-?[0-9]+),([0-9]{1,2}|[0-9]{4,})$", r"\1.\2", word)
    return re.sub(r"^(-?[0-9]+)\.0*$", r"\1", point)


def _looks(name: str) -> set[str]:
    """Return what a name is and what it looks like, folded."""
    looks = {fold_name(name)}
    if not name.isascii():  # few are, of millions
        looks.add(fold_name(unicodedata.normalize("NFD", name).translate(_LATIN)))
    return looks


def refuse_spellings(what: str, places: Mapping[str, str]) -> None:
    """Refuse names that are one name written in two ways.

    Args:
        what: they are names of.
        places: where each stands, one place of it.

    Raises:
        ManifestError: there are such; the text shows the first two so that their difference is seen.
    """
    spelled: dict[str, str] = {}
    for name in sorted(places):
        for look in _looks(name):
            other = spelled.setdefault(look, name)
            if other != name:
                raise ManifestError(_sentence(what, other, name, places))


def _sentence(what: str, one: str, other: str, places: Mapping[str, str]) -> str:
    is_folded = fold_name(one) == fold_name(other)
    show = repr if is_folded and compose(one) != compose(other) else ascii
    how = (
        "case, spaces, Unicode form or how a number is written"
        if is_folded
        else "letters that look alike"
    )
    first, second = (f"{show(name)} (at {places[name]!r})" for name in (one, other))
    return (
        f"The {what} has the values {first} and {second}, which differ in {how} alone, so that one thing would count as two; "
        "write each in one way."
    )
