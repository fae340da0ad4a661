import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.data.spellings import compose, fold_name, refuse_spellings
from assay.errors import ManifestError


@given(st.text(max_size=20))
def test_a_folded_name_is_the_same_for_each_of_its_spellings(name):
    folded = fold_name(name)
    assert fold_name(folded) == folded
    for form in ("NFC", "NFD"):
        assert fold_name(unicodedata.normalize(form, name)) == folded
        assert compose(unicodedata.normalize(form, name)) == compose(name)
    assert fold_name(f"  {name}\u200b ") == folded


NO_TWINS = st.characters(exclude_categories=["Cs", "Pd", "Pi", "Pf"]).filter(
    lambda c: not ("\u0370" <= c <= "\u04ff" or c in "\u2212\ufffd")
)


@given(st.lists(st.text(NO_TWINS | st.sampled_from("1.0/ aA"), max_size=6), max_size=8))
def test_names_are_refused_exactly_where_two_are_one(names):
    distinct = set(names)
    places = {name: f"{i}.png" for i, name in enumerate(names)}
    if len(set(map(fold_name, distinct))) == len(distinct):
        refuse_spellings("label", places)
    else:
        with pytest.raises(ManifestError, match="label has the values"):
            refuse_spellings("label", places)


@pytest.mark.parametrize(
    ("first", "second"),
    [("NG", "\uff2e\uff27"), ("\u30ab\u30d3", "\uff76\uff8b\uff9e"), ("1", "\uff11")],
)
def test_half_and_full_width_are_one_name(first, second):
    """As Japanese and Chinese spreadsheets mix them."""
    message = rf"values '{first}' \(at 'a'\) and '{second}' \(at 'b'\), which differ in case"
    with pytest.raises(ManifestError, match=message):
        refuse_spellings("label", {first: "a", second: "b"})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("1", "1.0"),
        ("0", "0."),
        ("12", "12.000"),
        ("01", "01.0"),
        ("7", "7,0"),
        ("1,5", "1.5"),
        ("-2", "-2.0"),
        ("2/a", "2.0/a"),
        (".5", "0.5"),
        ("-.5", "-0,5"),
        ("+1", "1"),
        ("+1.0", "1"),
        ("-0", "0"),
    ],
)
def test_a_whole_number_with_a_fraction_of_zeros_is_one_name(first, second):
    with pytest.raises(ManifestError, match="or how a number is written alone"):
        refuse_spellings("group", {first: "a", second: "b"})


@pytest.mark.parametrize("quoted", ['"001"', "'001'", '="001"', "'001", ' "001"', "\"'001'\""])
def test_quotes_that_a_program_left_are_no_part_of_a_name(quoted):
    """Else the images of one part lie on both sides of a split."""
    with pytest.raises(ManifestError, match="case, spaces, quotes"):
        refuse_spellings("group", {"001": "a", quoted: "b"})
    refuse_spellings("group", {quoted: "a", "002": "b", "5'": "c", "5": "d", "'": "e"})


@pytest.mark.parametrize(
    ("latin", "other"),
    [
        ("cat", "c\u0430t"),
        ("OK", "\u039f\u039a"),
        ("OK", "\u041e\u041a"),
        ("cop", "\u0441\u043e\u0440"),
        ("KIRIK", "k\u0131r\u0131k"),
        ("ok", "\u041e\u041a"),
        ("N\u00cb", "N\u0415\u0308"),
        ("\u041e\u041a", "\u039f\u039a"),
        ("a-b", "a\u2013b"),
        ("-5", "\u22125"),
        ("5'", "5\u2019"),
        ('"x"', "\u201cx\u201d"),
    ],
)
def test_letters_that_look_alike_are_shown_as_what_they_are(latin, other):
    with pytest.raises(
        ManifestError, match="differ in letters or marks that look alike alone"
    ) as error:
        refuse_spellings("label", {latin: "a", other: "b"})
    assert all(f"{name!a} (at" in str(error.value) for name in (latin, other))
    for name in (latin, other):
        refuse_spellings("label", {name: "a", "other": "b"})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("surface_scratch", "surface scratch"),
        ("surface-scratch", "surface_scratch"),
        ("2024-01-05", "2024_01_05"),
        ("A - 1", "A-1"),
        ("M_1/p", "M-1/p"),
        ("P-1", "P1"),
        ("10 ms", "10ms"),
        ("50 %", "50%"),
        ("7", "007"),
        ("lot 3", "lot 03"),
        ("P01", "PO1"),
        ("A11", "Al1"),
        ("ray\u00e9", "raye"),
        ("L\u00f6tfehler", "Loetfehler"),
        ("pit & crack", "pit &amp; crack"),
        ("ok", "ok."),
    ],
)
def test_names_that_are_nearly_one_are_said(first, second, capsys):
    refuse_spellings("label", {first: "x", second: "y"})
    said = capsys.readouterr().err
    assert all(repr(name) in said for name in (first, second))
    assert said.endswith("which count as two; write them in one way if they are one.\n")
    refuse_spellings("label", {first: "x", f"{second}s": "y"})
    assert not capsys.readouterr().err


@pytest.mark.parametrize("code", ["cp1252", "latin-1"])
def test_a_name_and_what_a_program_made_of_its_bytes_are_one(code):
    """A table that was saved as UTF-8 and opened as something else."""
    garbled = "Porosit\u00e4t".encode().decode(code)
    with pytest.raises(ManifestError, match="look alike"):
        refuse_spellings("label", {"Porosit\u00e4t": "a", garbled: "b"})
    refuse_spellings("label", {garbled: "a", "Porositat": "b"})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("2024-01-05", "05.01.2024"),
        ("2024-01-05", "2024/01/06"),
        ("5.1.24", "1/5/2024"),
        ("2024-01-05", "20240106"),
        ("2024-01-05", "5-Jan-24"),
        ("05.01.2024", "5. M\u00e4rz 2024"),
        ("2024-01-05", "Jan 5, 2024"),
        ("2024-01-05", "45296"),
        ("05-01-2024", "2024-01-05"),
        ("2024-01-05 12:00", "05.01.2024 12:00"),
        ("2024-01-05 12:00:00", "2024-01-05T12:00:00"),
        ("2024-01-05 12:00:00", "2024-01-05 12:00:00Z"),
        ("2024-01-05 02:00 PM", "2024-01-05 14:00"),
    ],
)
def test_dates_in_several_forms_are_refused(first, second):
    with pytest.raises(ManifestError, match="dates in several forms"):
        refuse_spellings("group", {first: "a", second: "b"})
    refuse_spellings("group", {first: "a", f"lot {second}": "b"})
    others = ("2024-01-05", "2024-11-15 12:00", "2024-11-15 12:00:01.5", "1.2.3", "20240000", "May")
    refuse_spellings("group", {name: name for name in others})


def test_letters_that_a_program_lost_are_no_name():
    with pytest.raises(ManifestError, match=r"could not read.*write the letters again"):
        refuse_spellings("label", {"gr\ufffdn": "a", "b": "b"})


OTHERS = [
    ("\u043a\u043e\u0442", "\u0442\u043e\u043a"),  # Russian, of two words
    ("\u0440\u043e\u0433", "por"),
    ("\u03b1", "a"),  # phases of a metal
    ("5 \u03bcm", "5 mm"),
    ("\u03b2", "\u0432"),
    ("1.1", "1.10"),
    ("1", "01"),
    ("1,000", "1"),
    ("1", "l"),
    ("\u0392", "\u0412\u0412"),
    ("+a", "a"),
    ("a-0", "a0"),
    ("1e3", "1000"),  # or two ids in hexadecimal digits
    ("C++", "C"),
    ("a_b", "ab"),
    ("crack-", "crack"),
    ("-1", "1"),
    ("_a", "a"),
    ("a/b", "a-b"),
]


# default ignorable code points (Unicode, DerivedCoreProperties.txt), the empty pattern of braille, and controls
UNSEEN = "\u00ad\u034f\u061c\u115f\u1160\u17b4\u180e\u200b\u2063\u2800\u3164\ufe0f\ufeff\uffa0\U000e0100\x07\x7f\x9b"


@pytest.mark.parametrize("mark", UNSEEN)
def test_a_mark_that_nobody_sees_is_shown(mark):
    with pytest.raises(ManifestError, match="label has the values") as error:
        refuse_spellings("label", {"ab": "1.png", f"a{mark}b": "2.png"})
    assert f"{f'a{mark}b'!a} (at" in str(error.value)


@pytest.mark.parametrize("name", ["1.23457E+15", "1e+05", "a/2.5e+11", "9.0071992547409920e+15"])
def test_a_number_that_lacks_digits_is_no_name(name):
    """Spreadsheets write 1234567890123456 so, and 1234567890123499 too."""
    with pytest.raises(ManifestError, match="may be lost, so that several would count as one"):
        refuse_spellings("group", {name: "a", "2": "b"})


@pytest.mark.parametrize("name", ["1e5", "12e45", "1.000e+00", "1.5e-07", "x1e+05", "1000000"])
def test_other_names_with_an_e_are_taken(name):
    refuse_spellings("group", {name: "a", "2": "b"})


@pytest.mark.parametrize(("first", "second"), OTHERS)
def test_names_without_a_twin_are_taken(first, second):
    refuse_spellings("label", {first: "a", second: "b"})
