"""Spellings: names that people would take for one and a program would not."""

import html
import re
import sys
import unicodedata
from collections.abc import Mapping
from contextlib import suppress

from assay.errors import ManifestError

_LATIN = str.maketrans(
    # Cyrillic, then Greek: of its small letters the others look different, and stand for quantities
    "АВЕКМНОРСТУХІЈЅаеорсухіјѕΑΒΕΖΗΙΚΜΝΟΡΤΥΧοı"  # noqa: RUF001
    "\u2010\u2012\u2013\u2014\u2015\u2212\u2018\u2019\u201c\u201d",
    "ABEKMHOPCTYXIJSaeopcyxijsABEZHIKMNOPTYXoi------''\"\"",
)
"""Letters that look as Latin ones do, by the keyboard that writes them, and dashes and quotes that a word processor puts for typed ones."""

_UMLAUTS = {ord("ä"): "ae", ord("ö"): "oe", ord("ü"): "ue"}

_TYPED = str.maketrans("oli", "011")
"""Letters that are typed or read for digits."""

_UNSEEN = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\uffa0"
    "\ufe00-\ufe0f\U000e0100-\U000e01ef]"
)
"""Characters that print as nothing beside those of Unicode's category Cf: controls, fillers, variation selectors."""

_JOINTS = re.compile(r"(?<=\w)[ _-]+(?=[^\W_])")
"""What stands between words, and may be one name's: surface_scratch, surface-scratch."""

_UNIT_JOINTS = re.compile(r"(?<=[^\W\d_])[ _-]+(?=\d)|(?<=\d)[ _-]+(?=[^\W\d_]|[%°])")
"""What stands between a word and its number, or is left out there: P-1, P1, 10 ms."""

_ZEROS = re.compile(r"(?<![\d.,])0+(?=\d)")
"""Zeros that a spreadsheet takes from a number's front."""

_QUOTED = re.compile(r"""=?(["'])(.*)\1|'(.*)""", re.DOTALL)
"""A text in quotes, as a formula, or behind the sign by which a spreadsheet knows a text."""

_SHORTENED = re.compile(r"[-+]?[0-9](\.[0-9]*)?[eE]\+(0[5-9]|[1-9][0-9]+)")
"""A large number as spreadsheets and programs shorten it, or hold it: 1.23457E+15."""


_MONTH = r"(jan|feb|m[aä]r|apr|ma[iy]|jun|jul|aug|sep|o[ck]t|nov|de[cz])[a-zä]*\.?"

_DATES = {
    "year-month-day": r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}",
    "year/month/day": r"[0-9]{4}/[0-9]{1,2}/[0-9]{1,2}",
    "yearmonthday": r"(19|20)[0-9]{2}(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])",
    "day.month.year": r"[0-9]{1,2}\.[0-9]{1,2}\.([0-9]{2}|[0-9]{4})",
    "day/month/year or month/day/year": r"[0-9]{1,2}/[0-9]{1,2}/([0-9]{2}|[0-9]{4})",
    "day-month-year or month-day-year": r"[0-9]{1,2}-[0-9]{1,2}-([0-9]{2}|[0-9]{4})",
    "a month's name": rf"[0-9]{{1,2}}[-./ ]+{_MONTH}([-/ ]+([0-9]{{2}}|[0-9]{{4}}))?|{_MONTH} [0-9]{{1,2}},? [0-9]{{4}}",
    "a spreadsheet's number of a day": r"[34][0-9]{4}",
}
"""How people and programs write a date."""

_TIME = r"(?P<time>[ T]+[0-9]{1,2}:[0-9]{2}(:[0-9]{2}([.,][0-9]+)?)?( ?[ap]m)?(z|utc|[+-][0-9]{2}:?[0-9]{2})?)?"

_DATED = {form: re.compile(f"(?:{date}){_TIME}", re.IGNORECASE) for form, date in _DATES.items()}

_DATE_BEGINS = re.compile(rf"[0-9]|{_MONTH} ", re.IGNORECASE)


def compose(name: str) -> str:
    """Return a name in one Unicode form (NFC): a copy from macOS has its accents apart."""
    return unicodedata.normalize("NFC", name)


def fold_name(name: str) -> str:
    """Return one spelling for names that differ in case, spaces, quotes around them, Unicode form, width, invisible marks or how a number is written.

    Programs write 1.0 for 1 where a column lacks values, spreadsheets 1,5 for 1.5. 01 is another part than 1, version 1.10
    another than 1.1, and 1,000 may be a thousand.
    """
    name = drop_unseen(name)
    if not name.isascii():
        # what casefold takes apart may have a shorter form again (Unicode, section 3.13, D146)
        for _ in range(2):
            name = unicodedata.normalize("NFKC", name.casefold())
    words = " ".join(name.casefold().split())
    while quoted := _QUOTED.fullmatch(words):
        words = (quoted[2] or quoted[3] or "").strip()
    if not re.search(r"[.,+]|-0", words):  # few have any, of millions
        return words
    return "/".join(map(_plain_number, words.split("/")))


def _plain_number(word: str) -> str:
    point = re.sub(r"^([-+]?[0-9]+),([0-9]{1,2}|[0-9]{4,})$", r"\1.\2", word)
    if not re.fullmatch(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)", point):
        return word
    point = re.sub(r"^([-+]?)\.", r"\g<1>0.", point.removeprefix("+"))
    return re.sub(r"^-(0)$", r"\1", re.sub(r"^(-?[0-9]+)\.0*$", r"\1", point))


def drop_unseen(name: str) -> str:
    """Return a name without characters that print as nothing."""
    if not name.isascii():
        name = "".join(c for c in name if unicodedata.category(c) != "Cf")
    return _UNSEEN.sub("", name)


def _looks(name: str) -> set[str]:
    """Return what a name is, what it looks like, and what it was before a program took its UTF-8 for Latin letters, folded."""
    looks = {fold_name(name)}
    if not name.isascii():  # few are, of millions
        looks.add(fold_name(unicodedata.normalize("NFD", name).translate(_LATIN)))
        for code in ("cp1252", "latin-1"):
            with suppress(UnicodeError):
                looks.add(fold_name(name.encode(code).decode()))
    return looks


def refuse_spellings(what: str, places: Mapping[str, str]) -> None:
    """Refuse names that are one name written in two ways.

    Args:
        what: they are names of.
        places: where each stands, one place of it.

    Raises:
        ManifestError: there are such; the text shows the first two so that their difference is seen. Or
            one may stand for several, as a number that lacks digits.
    """
    for name in sorted(places):
        if "\ufffd" in name:
            raise ManifestError(
                f"The {what} has the value {name!r} (at {places[name]!r}), in which a program put the sign U+FFFD for letters that it could not read, so that "
                "several would count as one; write the letters again."
            )
        if any(map(_SHORTENED.fullmatch, name.split("/"))):
            raise ManifestError(
                f"The {what} has the value {name!r} (at {places[name]!r}), a number with an exponent, whose last digits may be lost, so "
                "that several would count as one; write all digits, from a column of text."
            )
    spelled: dict[str, str] = {}
    for name in sorted(places):
        for look in _looks(name):
            other = spelled.setdefault(look, name)
            if other != name:
                raise ManifestError(_sentence(what, other, name, places))
    _refuse_dates(what, places)
    _say_close(what, places)


def _refuse_dates(what: str, places: Mapping[str, str]) -> None:
    """Refuse dates in several forms: one day would count as two."""
    forms: dict[str, str] = {}
    for name in sorted(places):
        if _DATE_BEGINS.match(name) and (form := _date_form(name)):
            forms.setdefault(form, name)
    if len(forms) > 1:
        (form, name), (other_form, other) = [*forms.items()][:2]
        raise ManifestError(
            f"The {what} has dates in several forms, {name!r} ({form}, at {places[name]!r}) and {other!r} ({other_form}, at {places[other]!r}), so that one day "
            "would count as two; write all in one form."
        )


def _date_form(name: str) -> str:
    """Say how a date is written, and its time where it has one; empty where it is none."""
    for form, dated in _DATED.items():
        if match := dated.fullmatch(name):
            time = re.sub("[ap]m", "am or pm", (match["time"] or "").lower())
            marks = re.findall("t|am or pm|z|utc|[+-]", time)
            return f"{form} with {' and '.join(marks)}" if marks else form
    return ""


def _say_close(what: str, places: Mapping[str, str]) -> None:
    """Say where names are nearly one: two, or one that two people or programs wrote."""
    spelled: dict[str, str] = {}
    for name in sorted(places):
        for look in _close_looks(name):
            other = spelled.setdefault(look, name)
            if other != name:
                print(
                    f"The {what} has the values {other!r} (at {places[other]!r}) and {name!r} (at {places[name]!r}), which count as two; write them in one "
                    "way if they are one.",
                    file=sys.stderr,
                )
                return


def _close_looks(name: str) -> set[str]:
    """Return a folded name without what is often written otherwise, or lost: joints, zeros before a number, accents, a last point."""
    words = fold_name(html.unescape(name).replace("_x000D_", ""))
    words = _JOINTS.sub(" ", _UNIT_JOINTS.sub("", words)).rstrip(".:;,!")
    if re.search(r"\d", words):
        words = _ZEROS.sub("", words.translate(_TYPED))
    if words.isascii():
        return {words}
    spelled_out = words.translate(_UMLAUTS)
    return {_drop_accents(words), _drop_accents(spelled_out)}


def _drop_accents(words: str) -> str:
    letters = unicodedata.normalize("NFD", words)
    return "".join(c for c in letters if not unicodedata.combining(c))


def _sentence(what: str, one: str, other: str, places: Mapping[str, str]) -> str:
    is_folded = fold_name(one) == fold_name(other)
    seen, other_seen = (drop_unseen(compose(name)) for name in (one, other))
    show = repr if is_folded and seen != other_seen else ascii
    how = (
        "case, spaces, quotes, Unicode form or how a number is written"
        if is_folded
        else "letters or marks that look alike"
    )
    first, second = (f"{show(name)} (at {places[name]!r})" for name in (one, other))
    return (
        f"The {what} has the values {first} and {second}, which differ in {how} alone, so that one thing would count as two; "
        "write each in one way."
    )
