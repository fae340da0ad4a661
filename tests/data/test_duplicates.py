import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.data.duplicates import join_rows


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from("ABCDEFG"), st.sampled_from("uvwxyz")), max_size=12),
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=3),
)
def test_joined_rows_are_those_a_chain_of_keys_and_links_leads_to(keys, links):
    columns = [[k[0] for k in keys], [k[1] for k in keys]]
    rows = [i for i in range(len(keys)) if i % 5 != 3]
    links = [(i, j) for i, j in links if i in rows and j in rows]
    reached = np.eye(len(keys), dtype=bool)
    for i in rows:
        for j in rows:
            reached[i, j] |= any(column[i] == column[j] for column in columns)
            reached[i, j] |= (i, j) in links or (j, i) in links
    for _ in keys:
        reached = (reached.astype(int) @ reached) > 0
    expected = {tuple(np.flatnonzero(reached[i]).tolist()) for i in rows}
    assert {tuple(unit.tolist()) for unit in join_rows(columns, rows, links)} == expected
