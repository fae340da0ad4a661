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


@given(
    body=st.binary(max_size=100),
    kind=st.text(max_size=60) | st.sampled_from(["", "; boundary=a", '; boundary="a b"']),
    head=st.binary(max_size=100),
)
def test_no_body_breaks_it(body: bytes, kind: str, head: bytes) -> None:
    part = b"--a\r\nContent-Disposition: " + head + b"\r\n\r\n" + body + b"\r\n--a--"
    for whole in (body, part):
        for named in (kind, "; boundary=a"):
            with suppress(RefusedError):
                form_parts(whole, "multipart/form-data" + named)


@pytest.mark.parametrize(
    ("named", "boundary"),
    [
        ("boundary=XX; charset=utf-8", "XX"),
        ('x-boundary=no; Boundary="XX"', "XX"),
        ('boundary="\'()+_,-./:=? z"', "'()+_,-./:=? z"),
        ('boundary="a;b"', "a;b"),
        (r'boundary="a\"b"', 'a"b'),
    ],
)
def test_a_boundary_is_read_as_it_is_quoted(named: str, boundary: str) -> None:
    head = 'content-disposition: form-data; name="image"; filename="a.png"'
    body = f"--{boundary}\r\n{head}\r\n\r\nx\r\n--{boundary}--\r\n"
    assert form_parts(body.encode(), f"multipart/form-data; {named}") == [b"x"]


@pytest.mark.parametrize(
    ("head", "is_file"),
    [
        ('Content-Disposition: form-data; name="a; filename=b"', False),
        ('Content-Disposition: form-data; name="a"; filename="  "', False),
        ('Content-Disposition: form-data; name="a"\r\nContent-Type: text/plain', False),
        ('Content-Disposition: form-data; name="a"; filename=" b.png"', True),
        ('Content-Disposition: form-data;\r\n name="a";\r\n filename="b.png"', True),
        ('Content-Disposition: form-data; name="a"\r\nContent-Type: image/png', True),
        ("Content-Type: image/png", True),
    ],
)
def test_a_file_has_a_name_or_is_called_an_image(head: str, is_file: bool) -> None:
    parts = [f"--X\r\n{each}\r\n\r\n{name}\r\n" for each, name in ((head, 1), ("a: b", 2))]
    content = "".join([*parts, "--X--"]).encode()
    if is_file:
        assert form_parts(content, "multipart/form-data; boundary=X") == [b"1"]
        return
    with pytest.raises(RefusedError, match="no part of the form has a file name"):
        form_parts(content, "multipart/form-data; boundary=X")


def test_bodies_that_would_never_be_let_in_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"held-mb is 1 and limits\.body-mb 96"):
        Limits(held_mb=1.0)
    assert Limits(held_mb=96.0)


@pytest.mark.parametrize("name", ["model", "mask", "print"])
def test_a_parameter_of_the_address_is_no_field_of_a_form(name: str) -> None:
    """Else champion answered who had asked for challenger."""
    image = 'Content-Disposition: form-data; name="image"; filename="a.png"'
    for field, is_refused in ((name, True), ("note", False)):
        heads = ((f'Content-Disposition: form-data; name="{field}"', "challenger"), (image, "1"))
        parts = [f"--X\r\n{head}\r\n\r\n{content}\r\n" for head, content in heads]
        content = "".join([*parts, "--X--"]).encode()
        if not is_refused:
            assert form_parts(content, "multipart/form-data; boundary=X") == [b"1"]
            continue
        with pytest.raises(RefusedError, match=f"field '{name}', which is a parameter"):
            form_parts(content, "multipart/form-data; boundary=X")


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
