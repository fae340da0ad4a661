"""Forms are taken apart as httpx puts them together; limits let something through."""

from contextlib import suppress

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.bundle.segment import runs
from assay.errors import ConfigError
from assay.serve.limits import Limits, RefusedError, form_parts


@given(contents=st.lists(st.binary(max_size=200), min_size=1, max_size=4))
def test_a_form_holds_what_was_put_in(contents: list[bytes]) -> None:
    files = [("image", (f"{i}.png", content, "image/png")) for i, content in enumerate(contents)]
    request = httpx.Request("POST", "http://here", files=files)
    assert form_parts(request.read(), request.headers["content-type"]) == contents


@given(body=st.binary(max_size=100), kind=st.sampled_from(["", "; boundary=a", '; boundary="a b"']))
def test_no_body_breaks_it(body: bytes, kind: str) -> None:
    with suppress(RefusedError):
        form_parts(body, "multipart/form-data" + kind)


def test_a_limit_of_nothing_is_refused() -> None:
    for name, value in vars(Limits()).items():
        with pytest.raises(ConfigError, match=name.replace("_", "-")):
            Limits(**{name: type(value)(-1 if name == "rate" else 0)})


@given(seed=st.integers(0, 1000), height=st.integers(1, 6), width=st.integers(1, 6))
def test_runs_rebuild_their_mask(seed: int, height: int, width: int) -> None:
    inside = np.random.default_rng(seed).random((height, width)) < 0.5
    lengths = runs(inside)
    flat = np.repeat(np.arange(len(lengths)) % 2, lengths).astype(bool)
    assert np.array_equal(flat.reshape(width, height).T, inside)
    assert all(length > 0 for length in lengths[1:])
