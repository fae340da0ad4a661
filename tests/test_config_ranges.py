"""Ranges, of every class of settings in the package and the tasks, and the sentences of what lies outside."""

import copy
import importlib
import math
import re
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen, MultipleOf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assay.config import Settings, from_dict, read_entry_ranges, read_ranges, to_dict
from assay.errors import ConfigError
from assay.train.source import TaskSource, load_task

ROOT = Path(__file__).parents[1]
FINGERPRINT: Any = load_task(TaskSource.read(ROOT / "tasks" / "fingerprint.py"))

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def subclasses(kind: type[Settings]) -> list[type[Settings]]:
    below = [other for direct in kind.__subclasses__() for other in [direct, *subclasses(direct)]]
    return list(dict.fromkeys(below))


def settings_classes() -> list[type[Settings]]:
    modules = {
        load_task(TaskSource.read(path)).__module__ for path in (ROOT / "tasks").glob("*.py")
    }
    for path in sorted((ROOT / "platform" / "assay").rglob("*.py")):
        if re.search(
            r"^class \w+\((Settings|Launch|SweepLaunch)\b", path.read_text(), re.MULTILINE
        ):
            parts = path.relative_to(ROOT / "platform").with_suffix("").parts
            modules.add(importlib.import_module(".".join(parts)).__name__)
    return sorted(
        (
            kind
            for kind in subclasses(Settings)
            if kind.__module__ in modules or kind.__module__.startswith("assay.")
        ),
        key=lambda kind: (kind.__module__, kind.__name__),
    )


KINDS = settings_classes()
RANGED = [(kind, name) for kind in KINDS for name in read_ranges(kind)]


def is_inside(value: Any, bounds: tuple[Any, ...]) -> bool:
    if not isinstance(value, tuple) and not (isinstance(value, int) or math.isfinite(value)):
        return False
    for bound in bounds:
        match bound:
            case Ge(end):
                inside = value >= end
            case Gt(end):
                inside = value > end
            case Le(end):
                inside = value <= end
            case Lt(end):
                inside = value < end
            case MultipleOf(step):
                inside = value % step == 0
            case MinLen(least):
                inside = len(value) >= least
            case MaxLen(most):
                inside = len(value) <= most
        if not inside:
            return False
    return True


def values_of(kind: type[Settings], name: str) -> st.SearchStrategy[Any]:
    hint = get_type_hints(kind)[name]
    if hint in (float, float | None):
        return st.floats(0, 1) | st.floats(-2, 2) | st.floats()
    if hint in (int, int | None):
        return st.integers(-2, 300) | st.integers(1, 9).map(lambda n: 32 * n) | st.integers()
    assert get_origin(hint) is tuple, (kind, name)
    entry = next(iter(getattr(kind(), name)), 64)
    return (st.integers(0, 3) | st.integers(253, 256)).map(lambda num: (entry,) * num)


def test_every_number_with_a_range_is_seen():
    names = {f"{kind.__name__}.{name}" for kind, name in RANGED}
    assert len(names) > 100
    assert {"TrainConfig.epochs", "PatchModelConfig.k", "SegmentModelConfig.pos_weight"} <= names


def test_no_number_is_without_a_lower_and_an_upper_end():
    for kind in KINDS:
        for name, hint in get_type_hints(kind).items():
            is_tuple = get_origin(hint) is tuple
            number = get_args(hint)[0] if is_tuple else hint
            if number in (int, float):
                bounds = (read_entry_ranges if is_tuple else read_ranges)(kind).get(name, ())
                assert any(isinstance(bound, Ge | Gt) for bound in bounds), (kind, name)
                assert any(isinstance(bound, Le | Lt) for bound in bounds), (kind, name)


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("optim", "lr", True),
        ("train", "epochs", False),
        ("tiles", "mean", [0.5, True, 0.5]),
        ("model", "decoder_channels", [True]),
        ("data", "page", True),
        ("data", "label", False),
    ],
)
def test_a_truth_is_no_number(section: str, name: str, value: Any) -> None:
    """To Python true is 1."""
    config = load_task(TaskSource.read(ROOT / "tasks" / "segment.py")).Config
    option = f"{section}.{name}".replace("_", "-")
    with pytest.raises(
        ConfigError, match=rf"^{option} is .*(True|False).*true or false is no value"
    ):
        from_dict(config, {section: {name: value}})
    assert from_dict(config, {"crops": {}, "masks": {}}) == config()


def test_an_empty_path_of_a_saved_config_is_not_this_folder() -> None:
    config = load_task(TaskSource.read(ROOT / "tasks" / "segment.py")).Config
    with pytest.raises(ConfigError, match=r"^data\.root is an empty text.*or null"):
        from_dict(config, {"data": {"root": ""}})
    assert from_dict(config, {"data": {"root": None, "label": ""}}).data.root is None


def test_an_entry_outside_the_range_of_its_field_is_refused_as_a_number_is():
    config = load_task(TaskSource.read(ROOT / "tasks" / "segment.py")).Config
    for section, name, value in [
        ("tiles", "mean", [0.5, math.nan, 0.5]),
        ("tiles", "std", [0.5, 0.0, 0.5]),
        ("model", "decoder_channels", [64, -1]),
    ]:
        option = f"{section}.{name.replace('_', '-')}"
        with pytest.raises(ConfigError, match=rf"^{option} is \S+; it must be "):
            from_dict(config, {section: {name: value}})


@settings(max_examples=100)
@given(st.data(), JSON | st.integers(10**300, 10**400) | st.just(math.nan) | st.just("9" * 5000))
def test_a_saved_config_with_any_value_in_any_place_is_taken_or_refused_in_a_sentence(data, value):
    config = FINGERPRINT.presets()["demo"]
    tree = to_dict(config)
    branch: Any = {"": tree}
    key: Any = ""
    while isinstance(branch[key], dict) and branch[key] and data.draw(st.booleans()):
        branch, key = branch[key], data.draw(st.sampled_from(sorted(branch[key])))
    branch[key] = value
    try:
        from_dict(type(config), tree)
    except ConfigError as error:
        assert "\n" not in str(error)  # noqa: PT017
        assert len(str(error)) < 1000  # noqa: PT017


def test_a_section_is_called_as_in_the_configuration_that_holds_it():
    for kind in KINDS:
        for name, hint in get_type_hints(kind).items():
            if isinstance(hint, type) and issubclass(hint, Settings) and read_ranges(hint):
                assert hint._section == name, (kind, hint)


@pytest.mark.parametrize(
    ("kind", "name"), RANGED, ids=[f"{kind.__name__}.{name}" for kind, name in RANGED]
)
# most of what is drawn lies on the wrong side of a narrow range
@settings(max_examples=8, suppress_health_check=[HealthCheck.filter_too_much])
@given(st.data())
def test_a_range_lets_in_what_is_inside_it_and_nothing_else(kind, name, data):
    bounds, values = read_ranges(kind)[name], values_of(kind, name)
    option = f"{kind._section}.{name}".lstrip(".").replace("_", "-")
    inside = copy.copy(kind())
    object.__setattr__(inside, name, data.draw(values.filter(lambda v: is_inside(v, bounds))))
    Settings.__post_init__(inside)  # what fields ask of each other is another matter
    outside = data.draw(values.filter(lambda v: not is_inside(v, bounds)))
    sentence = rf"^{re.escape(option)} (is|has) [^;]*; it must (be|have) [^;]*\.$"
    with pytest.raises(ConfigError, match=sentence):
        kind(**{name: outside})
    with pytest.raises(ConfigError, match=sentence):
        from_dict(kind, {name: outside})


@pytest.mark.parametrize(
    ("section", "name", "mistyped", "meant"),
    [
        ("optim", "lr", 30.0, 3e-1),  # the sign of the exponent
        ("optim", "weight_decay", 50.0, 0.05),  # a share in thousandths
        ("decide", "coverage", 0.1, 0.9),  # the share that may be missed
        ("model", "sigma", 50.0, 0.05),
        ("model", "alone", 1000.0, 1.0),
        ("patches", "mean", (123.675, 116.28, 103.53), (0.485, 0.456, 0.406)),  # of 0 to 255
        ("patches", "std", (58.395, 57.12, 57.375), (0.229, 0.224, 0.225)),
        ("patches", "clahe_clip", 300.0, 3.0),
        ("augment", "brightness_high", 120.0, 1.2),  # percent
        ("augment", "gamma_high", 22.0, 2.2),
        ("augment", "scale_high", 15.0, 1.5),
        ("train", "min_improvement", 1.0, 0.01),  # percent
    ],
)
def test_what_is_mistyped_by_a_power_of_ten_or_in_percent_is_refused(
    section: str, name: str, mistyped: Any, meant: Any
) -> None:
    """Such numbers train, and nothing comes of it."""
    option = f"{section}.{name}".replace("_", "-")
    kind = FINGERPRINT.Config
    assert from_dict(kind, {section: {name: meant}})
    with pytest.raises(ConfigError, match=f"^{re.escape(option)} is "):
        from_dict(kind, {section: {name: mistyped}})


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"train": {"epochs": -1}},
            "train.epochs is -1; it must be at least 0 and at most 100000.",
        ),
        (
            {"train": {"batch_size": 0}},
            "train.batch-size is 0; it must be at least 1 and at most 1000000.",
        ),
        ({"optim": {"warmup": 1.0}}, "optim.warmup is 1.0; it must be at least 0 and below 1."),
        ({"data": {"page": -1}}, "data.page is -1; it must be at least 0 and at most 1000000."),
        (
            {"optim": {"lr": math.nan}},
            "optim.lr is nan; it must be a finite number, above 0 and at most 10.",
        ),
        (
            {"optim": {"lr": math.inf}},
            "optim.lr is inf; it must be a finite number, above 0 and at most 10.",
        ),
        (
            {"tiles": {"tile_px": 100}},
            "tiles.tile-px is 100; it must be at least 32, at most 8192 and a multiple of 32.",
        ),
        (
            {"masks": {"classes": ()}},
            "masks.classes has 0 entries; it must have at least 1 and at most 253.",
        ),
    ],
)
def test_the_sentence_says_option_value_and_range(values, sentence):
    config = load_task(TaskSource.read(ROOT / "tasks" / "segment.py")).Config
    with pytest.raises(ConfigError) as caught:
        from_dict(config, values)
    assert str(caught.value) == sentence
