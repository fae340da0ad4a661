"""Masks: counts against scipy and scikit-learn, thresholds, layers without a pixel, figures."""

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import jaccard_score, precision_recall_fscore_support

from assay.levels import LEVELS, NEVER, VOID, level_probs, to_mask
from assay.metrics import evaluate, masks
from assay.metrics.scores.masks import SIZES, component_columns, pixel_columns, validate_masks

SIDE = 24
SEEDS = st.integers(0, 10_000)


def layer(seed: int, num_classes: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Draw levels and a mask that they follow loosely."""
    rng = np.random.default_rng(seed)
    blobs = ndimage.gaussian_filter(rng.normal(size=(num_classes, SIDE, SIDE)), (0, 2, 2))
    mask = np.zeros((SIDE, SIDE), np.uint8)
    for i, blob in enumerate(blobs):
        mask[blob > np.quantile(blob, 0.85)] = i + 1
    inside = mask == np.arange(1, num_classes + 1)[:, None, None]
    levels = np.where(inside, 40, 24) + rng.normal(0, 8, inside.shape)
    return levels.clip(0, LEVELS - 1).astype(np.uint8), mask


def table_of(
    layers: list[tuple[np.ndarray, np.ndarray]],
    sets: list[str],
    truths: list[np.ndarray] | None = None,
) -> pa.Table:
    """Count layers into a predictions table; two layers to a group."""
    columns: dict[str, list] = {}
    for i, (levels, mask) in enumerate(layers):
        kinds = {"label": mask} | ({"truth": truths[i]} if truths else {})
        for kind, target in kinds.items():
            for count in (pixel_columns, component_columns):
                for name, values in count(levels, target, kind).items():
                    columns.setdefault(name, []).append(values)
    ids = [f"{i:03}" for i in range(len(layers))]
    groups = [f"g{i // 2}-{name}" for i, name in enumerate(sets)]
    return pa.table({"id": ids, "split": sets, "group": groups} | columns)


def marked(levels: np.ndarray, thresholds: list[int]) -> np.ndarray:
    """The mask that ships, class by class."""
    return to_mask(levels, thresholds) == np.arange(1, len(levels) + 1)[:, None, None]


@given(SEEDS, st.integers(1, 3))
def test_pixel_measures_are_those_of_scikit_learn(seed, num_classes):
    layers = [layer(seed + i, num_classes) for i in range(4)]
    sets = ["val", "val", "test", "test"]
    table = table_of(layers, sets)
    thresholds = [30 + i for i in range(num_classes)]
    scored = masks.score(table, thresholds)
    metrics, _ = masks.findings(scored, [f"c{i}" for i in range(num_classes)])
    classes = np.arange(1, num_classes + 1)[:, None, None]
    truth = np.concatenate([(mask == classes).ravel() for _, mask in layers[2:]])
    answer = np.concatenate([marked(levels, thresholds).ravel() for levels, _ in layers[2:]])
    precision, recall, f1, _ = precision_recall_fscore_support(
        truth, answer, average="binary", zero_division=1
    )
    test = metrics["test"]
    assert test["pixel_precision"].value == pytest.approx(precision)
    assert test["pixel_recall"].value == pytest.approx(recall)
    assert test["pixel_f1"].value == pytest.approx(f1)
    main = evaluate.summarise(scored, "test").metrics["iou"]
    assert main.value == pytest.approx(jaccard_score(truth, answer))
    each = [
        jaccard_score((mask == classes).ravel(), marked(levels, thresholds).ravel())
        for levels, mask in layers[2:]
    ]
    assert test["layer_iou"].value == pytest.approx(np.mean(each))


@given(SEEDS, st.integers(1, LEVELS - 1))
def test_components_are_counted_as_written(seed, threshold):
    """Against scipy, component by component."""
    levels, mask = layer(seed)
    columns = component_columns(levels, mask, "label")
    num = columns["components_label"]
    hits = columns["found_label"].reshape(-1, LEVELS)
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    expected_num, expected_found = np.zeros(5), np.zeros(5)
    answer = levels[0] >= threshold
    for i in range(1, count + 1):
        component = labels == i
        size = int(np.searchsorted(SIZES, component.sum(), side="right"))
        expected_num[size] += 1
        expected_found[size] += answer[component].mean() >= 0.5
    assert num.tolist() == expected_num.tolist()
    assert hits[:, threshold].tolist() == expected_found.tolist()
    parts, num_parts = ndimage.label(answer, np.ones((3, 3)))
    false = sum(not mask[parts == i].any() for i in range(1, num_parts + 1))
    assert columns["alarms_label"][threshold] == false


def test_the_threshold_is_vals_alone_and_keeps_a_recall_that_is_asked():
    layers = [layer(i) for i in range(6)]
    table = table_of(layers, ["val", "val", "val", "val", "test", "test"])
    [best] = masks.fit_thresholds(table, 1, 0.0)
    truth = np.concatenate([m.ravel() for _, m in layers[:4]]) == 1
    levels = np.concatenate([lv.ravel() for lv, _ in layers[:4]])
    f1 = [
        precision_recall_fscore_support(truth, levels >= t, average="binary", zero_division=0)[2]
        for t in range(1, LEVELS)
    ]
    assert best == 1 + int(np.argmax(f1))
    [sure] = masks.fit_thresholds(table, 1, 0.95)
    assert ((levels >= sure) & truth).sum() / truth.sum() >= 0.95
    assert ((levels >= sure + 1) & truth).sum() / truth.sum() < 0.95
    other = table_of(
        [*layers[:4], *[(lv, 1 - m) for lv, m in layers[4:]]], table["split"].to_pylist()
    )
    assert masks.fit_thresholds(other, 1, 0.0) == [best]


def test_layers_without_a_pixel_are_right_when_nothing_is_marked():
    empty, nothing = np.zeros((SIDE, SIDE), np.uint8), np.zeros((1, SIDE, SIDE), np.uint8)
    speck = nothing.copy()
    speck[0, 3:5, 3:5] = 60
    speck[0, 10, 10] = 60
    table = table_of(
        [layer(0), layer(1), (nothing, empty), (speck, empty), layer(2)],
        ["val", "val", *["test"] * 3],
    )
    scored = masks.score(table, [32])
    assert scored["score"].to_pylist()[2:4] == [1.0, 0.0]
    assert scored["weight"].to_pylist()[2:4] == [0.0, 5.0]
    alarms = masks.findings(scored, ["c"])[0]["test"]["false_alarms_per_clean_layer"]
    assert (alarms.value, alarms.num) == (1.0, 2)


def test_a_set_without_a_pixel_in_masks_and_answers_is_right():
    empty, nothing = np.zeros((SIDE, SIDE), np.uint8), np.zeros((1, SIDE, SIDE), np.uint8)
    table = table_of([layer(0), *[(nothing, empty)] * 4], ["val", *["test"] * 4])
    scored = masks.score(table, [32])
    iou = evaluate.summarise(scored, "test").metrics["iou"]
    assert (iou.value, iou.num, iou.num_groups) == (1.0, 4, 3)
    assert iou.low < 0.9
    [said] = masks.warnings(scored, ["c"])
    assert said.startswith("The masks of test hold no mark, so its numbers tell what is falsely")


@pytest.mark.parametrize(
    ("marks", "inside", "absent"),
    [
        (0, 1, {"pixel_precision"}),
        (1, 0, {"pixel_recall"}),
        (0, 0, {"pixel_precision", "pixel_recall"}),
    ],
)
def test_what_has_nothing_to_be_measured_on_is_no_number(marks, inside, absent):
    levels = np.full((1, SIDE, SIDE), marks * 63, np.uint8)
    mask = np.full((SIDE, SIDE), inside, np.uint8)
    table = table_of([layer(0), *[(levels, mask)] * 4], ["val", *["test"] * 4])
    metrics, figures = masks.findings(masks.score(table, [32]), ["c"])
    assert {"pixel_precision", "pixel_recall"} - metrics["test"].keys() == absent
    curves = [figure for figure in figures if figure.title.startswith("Precision")]
    assert len(curves) == inside


def test_of_a_class_that_test_lacks_no_curve_is_drawn():
    layers = [layer(i, 2) for i in range(5)]
    lacking = [(levels, np.where(mask == 1, 0, mask)) for levels, mask in layers[1:]]
    table = table_of([layers[0], *lacking], ["val", *["test"] * 4])
    _, figures = masks.findings(masks.score(table, [32, 32]), ["a", "b"])
    assert (figures[0].series.keys(), figures[0].chosen) == ({"b"}, None)


def test_truth_is_judged_by_and_the_label_only_learnt_from():
    """Marking what the true mask holds is right, whatever the mask that was learnt from says."""
    layers = [layer(i) for i in range(4)]
    truths = [np.roll(mask, 5, axis=1) for _, mask in layers]
    perfect = [
        (np.where(t, 63, 0).astype(np.uint8)[None], m)
        for (_, m), t in zip(layers, truths, strict=True)
    ]
    scored = masks.score(table_of(perfect, ["val", "val", "test", "test"], truths), [32])
    assert scored["score"].to_pylist() == [1.0] * 4
    metrics = masks.findings(scored, ["c"])[0]["test"]
    assert metrics["iou_with_label"].value < 0.6
    assert json.loads(scored.schema.metadata[b"thresholds"]) == [32]


def levels_table(pixels: np.ndarray) -> pa.Table:
    """Build the table of layers of one class from their pixels outside and inside the mask, by level."""
    num = len(pixels)
    rows = list(pixels.reshape(num, -1).astype(np.float32))
    columns = {
        "pixels_label": rows,
        "levels_label": rows,
        "components_label": [np.zeros(5, np.float32)] * num,
        "found_label": [np.zeros(5 * LEVELS, np.float32)] * num,
        "alarms_label": [np.zeros(LEVELS, np.float32)] * num,
    }
    ids = [str(i) for i in range(num)]
    return pa.table({"id": ids, "split": ["test"] * num, "group": ids} | columns)


def pixel_ece(pixels):
    return masks.findings(masks.score(levels_table(pixels), [32]), ["c"])[0]["test"]["pixel_ece"]


def test_calibrated_levels_have_no_calibration_error():
    """Of the pixels at each level as many lie inside as it says, to a pixel."""
    inside = np.rint(10_000 * level_probs())
    pixels = np.stack([[10_000 - inside, inside]] * 2)
    assert pixel_ece(pixels).value < 1e-4
    assert pixel_ece(pixels[:, ::-1]).value > 0.5


@pytest.mark.parametrize("seed", range(5))
def test_what_chance_adds_to_a_calibration_error_is_in_its_interval(seed):
    """Pixels that lie inside with the chance that their level says have an error, and the interval holds 0."""
    rng = np.random.default_rng(seed)
    every = rng.integers(1, 40, (30, LEVELS))
    inside = rng.binomial(every, level_probs())
    estimate = pixel_ece(np.stack([every - inside, inside], axis=1))
    assert estimate.low == 0 < 0.005 < estimate.value < estimate.high < 0.05
    assert pixel_ece(np.stack([inside, every - inside], axis=1)).low > 0.4


def test_a_look_finds_the_best_iou_and_the_nll_of_the_levels():
    layers = [layer(i, 2) for i in range(3)]
    columns = [pixel_columns(levels, mask, "label") for levels, mask in layers]
    stacked = {name: np.stack([c[name] for c in columns]) for name in columns[0]}
    measures = validate_masks(stacked, 2)
    hits = union = 0
    for i in range(2):
        truth = np.concatenate([(m == i + 1).ravel() for _, m in layers])
        leads = [np.where(lv.argmax(0) == i, lv[i], 0) for lv, _ in layers]
        answer = np.concatenate([lead.ravel() for lead in leads])
        pairs = [
            ((truth & (answer >= t)).sum(), (truth | (answer >= t)).sum()) for t in range(1, LEVELS)
        ]
        best = max(pairs, key=lambda pair: pair[0] / pair[1])
        hits, union = hits + best[0], union + best[1]
    assert measures["iou"] == pytest.approx(hits / union)
    probs = level_probs()
    lost = [
        -np.log(np.where(mask == i + 1, probs[lv[i]], 1 - probs[lv[i]]))
        for lv, mask in layers
        for i in range(2)
    ]
    assert measures["nll"] == pytest.approx(np.mean(lost), rel=1e-6)


def test_a_class_without_a_pixel_in_val_is_marked_from_a_half_on_and_said():
    levels, mask = layer(0, 2)
    table = table_of([(levels, np.where(mask == 2, 0, mask))], ["val"])
    assert masks.fit_thresholds(table, 2, 0.0)[1] == LEVELS // 2
    scored = masks.score(table, masks.fit_thresholds(table, 2, 0.0))
    [text] = masks.warnings(scored, ["pore", "streak"])
    assert "no pixel of streak" in text


@given(SEEDS)
def test_of_a_class_that_was_not_learnt_nothing_is_marked(seed):
    """Levels that know nothing of the mask: the best F1 would mark nearly everything."""
    rng = np.random.default_rng(seed)
    levels = rng.integers(0, LEVELS, (1, SIDE, SIDE), dtype=np.uint8)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[levels[0] < 20] = rng.random((levels[0] < 20).sum()) < 0.3  # what is inside scores low
    mask[0, 0], levels[0, 0, 0] = 1, 0
    table = table_of([(levels, mask)] * 2, ["val", "test"])
    thresholds = masks.fit_thresholds(table, 1, 0.0)
    assert thresholds == [NEVER]
    scored = masks.score(table, thresholds)
    [text] = masks.warnings(scored, ["pore"])
    assert "pore was not learnt" in text
    metrics, figures = masks.findings(scored, ["pore"])
    test = metrics["test"]
    assert (test["pixel_recall"].value, test["component_recall"].value) == (0, 0)
    assert test["prevalence"].value == pytest.approx((mask > 0).mean())
    assert test.keys() <= masks.MEASURES.keys()  # as people read them
    assert figures[0].chosen is None
    assert figures[0].caption == (
        "n = 1 layers. Threshold that val chose, as a probability: pore none, so that nothing is marked."
    )
    assert (
        validate_masks({n: np.array(table[n].to_pylist()) for n in table.column_names[3:]}, 1)[
            "iou"
        ]
        == 0
    )


def test_a_recall_that_marks_everything_is_said_to():
    levels, mask = np.full((1, SIDE, SIDE), 30, np.uint8), np.zeros((SIDE, SIDE), np.uint8)
    mask[5:8, 5:8] = mask[0, 0] = 1
    levels[0, 0, 0] = 1
    table = table_of([(levels, mask)], ["val"])
    assert masks.fit_thresholds(table, 1, 1.0) == [1]
    [text] = masks.warnings(masks.score(table, [1]), ["pore"])
    assert "100% of all pixels of val are marked as pore" in text


def test_figures_show_curve_sizes_and_calibration_of_test():
    table = table_of([layer(i) for i in range(6)], ["val"] * 2 + ["test"] * 4)
    scored = masks.score(table, masks.fit_thresholds(table, 1, 0.0))
    figures = {f.title: f for f in masks.findings(scored, ["pore"])[1]}
    assert len(figures) == 3
    curve = figures["Precision over recall of pixels, test"]
    assert curve.chosen is not None
    assert curve.caption.endswith(" Ring: that of pore.")
    pixels = f"n = {4 * SIDE * SIDE:,} pixels of 4 layers"
    assert figures["Reliability of pixels, test"].caption.startswith(pixels)
    x, y = curve.series["pore"].x, curve.series["pore"].y
    assert tuple(curve.chosen) in set(zip(x, y, strict=True))
    assert x == sorted(x)


@given(SEEDS)
def test_pixels_that_nobody_judged_are_not_counted(seed):
    """They count as if they were cut away; a mark that touches them is no false alarm."""
    levels, mask = layer(seed, 2)
    known = SIDE // 2
    mask[:, known:] = VOID
    counted = pixel_columns(levels, mask, "label")
    cut = pixel_columns(levels[..., :known], mask[:, :known], "label")
    assert all(np.array_equal(counted[name], cut[name]) for name in cut)
    alone = np.zeros((1, SIDE, SIDE), np.uint8)
    alone[:, 2:4, known - 2 : known + 1] = LEVELS - 1  # reaches into them
    alone[:, 9:11, 2:4] = LEVELS - 1
    empty = np.where(mask == VOID, VOID, 0).astype(np.uint8)
    assert component_columns(alone, empty, "label")["alarms_label"][LEVELS - 1] == 1
