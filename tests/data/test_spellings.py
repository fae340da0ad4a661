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


@given(st.lists(st.text(max_size=6), max_size=8))
def test_names_are_refused_exactly_where_two_are_one(names):
    distinct = set(names)
    if len(set(map(fold_name, distinct))) == len(distinct):
        refuse_spellings("label", names)
    else:
        with pytest.raises(ManifestError, match="label has the values"):
            refuse_spellings("label", names)


@pytest.mark.parametrize(
    ("first", "second"),
    [("NG", "\uff2e\uff27"), ("\u30ab\u30d3", "\uff76\uff8b\uff9e"), ("1", "\uff11")],
)
def test_half_and_full_width_are_one_name(first, second):
    """As Japanese and Chinese spreadsheets mix them."""
    with pytest.raises(ManifestError, match=f"values '{first}' and '{second}'"):
        refuse_spellings("label", [first, second])
