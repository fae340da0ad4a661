"""Settings survive a JSON file or are refused by name, and their fingerprint tells them apart."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
from annotated_types import Ge
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.config import Settings, fingerprint, from_dict, to_dict
from assay.errors import ConfigError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@dataclass(frozen=True, kw_only=True)
class Plain:
    """Not Settings itself; must be as strict within one."""

    low: float = 0.5
    kinds: tuple[Literal["a", "b"], ...] = ("a", "b")


@dataclass(frozen=True, kw_only=True)
class Inner(Settings):
    root: Path | None = None
    mode: Literal["dps", "random"] = "dps"
    unseen: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Outer(Settings):
    seed: Annotated[int, Ge(0)] = 0
    rate: float = 1e-3
    amp: bool = False
    inner: Inner = field(default_factory=Inner)
    plain: Plain = field(default_factory=Plain)


inners = st.builds(
    Inner,
    root=st.none() | st.sampled_from([Path("parts"), Path("/data/parts with blanks/ä.csv")]),
    mode=st.sampled_from(["dps", "random"]),
    unseen=st.lists(st.text(max_size=5), max_size=3).map(tuple),
)
outers = st.builds(
    Outer,
    seed=st.integers(0, 2**63),
    rate=st.floats(allow_nan=False, allow_infinity=False),
    amp=st.booleans(),
    inner=inners,
    plain=st.builds(Plain, kinds=st.lists(st.sampled_from(["a", "b"]), max_size=3).map(tuple)),
)


@given(outers)
def test_settings_survive_a_json_file(outer):
    values = json.loads(json.dumps(to_dict(outer)))
    restored = from_dict(Outer, values)
    assert restored == outer
    assert isinstance(restored.inner.unseen, tuple)
    assert isinstance(restored.plain, Plain)
    assert fingerprint(to_dict(restored)) == fingerprint(to_dict(outer))


def test_what_is_left_out_takes_its_default():
    assert from_dict(Outer, {}) == Outer()
    assert from_dict(Outer, {"inner": {"mode": "random"}}) == Outer(inner=Inner(mode="random"))


def test_a_whole_number_says_the_same_as_the_float():
    written_as_int = to_dict(Outer(rate=1, plain=Plain(low=2)))  # a saved run replays as floats
    assert fingerprint(written_as_int) == fingerprint(
        to_dict(Outer(rate=1.0, plain=Plain(low=2.0)))
    )


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"sede": 1}, "'sede'"),
        ({"inner": {"colour": 1}}, "'inner.colour'"),
        ({"plain": {"hihg": 1.0}}, "'plain.hihg'"),
        ({"inner": {"mode": "best"}}, "'dps' or 'random'"),
        ({"plain": {"kinds": ["a", "c"]}}, "'plain.kinds.1'"),
        ({"rate": "fast"}, "'fast'"),
        ({"seed": None}, "'seed'"),
        ({"seed": 1.5}, "1.5"),
        ({"inner": 3}, "'inner'"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused_by_name(values, named):
    with pytest.raises(ConfigError) as caught:
        from_dict(Outer, values)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("Correct it, or remove it to take the default.")


def test_a_setting_that_its_own_class_refuses_is_refused_when_read():
    with pytest.raises(ConfigError, match=r"^seed is -1; it must be at least 0\.$"):
        from_dict(Outer, {"seed": -1})


def test_settings_cannot_be_changed():
    with pytest.raises(AttributeError):
        Outer().seed = 1


@settings(max_examples=40)
@given(st.dictionaries(st.text(max_size=9), JSON, max_size=4))
def test_fingerprint_ignores_the_order_of_keys(values):
    turned = dict(reversed(values.items()))
    assert fingerprint(turned) == fingerprint(values)
    assert len(fingerprint(values)) == 12
    assert int(fingerprint(values), 16) >= 0


@given(JSON, JSON)
def test_fingerprint_tells_values_apart(one, other):
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (fingerprint(one) == fingerprint(other)) == same


def test_every_field_enters_the_fingerprint():
    different = [
        Outer(),
        Outer(seed=1),
        Outer(amp=True),
        Outer(inner=Inner(root=Path("x"))),
        Outer(inner=Inner(unseen=("x",))),
        Outer(plain=Plain(low=0.25)),
    ]
    assert len({fingerprint(to_dict(s)) for s in different}) == len(different)


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_fingerprint_is_the_same_in_another_process(hash_seed):
    values = {"b": [1, 2.5, None], "a": {"ü": "x", "set": sorted({"p", "q", "r"})}}
    code = f"from assay.config import fingerprint; print(fingerprint({values!r}))"
    answer = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.strip() == fingerprint(values)
