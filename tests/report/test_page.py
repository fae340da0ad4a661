"""report.html: what it says, that it needs nothing else, and what it refuses."""

import copy
import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assay.errors import AssayError, RunError
from assay.metrics.figure import Figure, Series
from assay.metrics.measures import STANDARD
from assay.report import charts
from assay.report import page as report
from assay.report.svg import count
from assay.runs import results
from assay.typed import to_json

HOSTILE = '<script>alert("x")</script>'
CLASSES = ["mill", HOSTILE, "lathe & saw"]
VOID = {"meta", "br", "img", "link", "input", "hr", "rect"}
SECTIONS = "numbers training errors domains trust own images data settings lineage"


def estimate(value: float, spread: float = 0.1, num: int = 40) -> dict[str, Any]:
    low, high = max(0.0, value - spread), min(1.0, value + spread)
    return {"value": value, "low": low, "high": high, "num": num, "num_groups": num // 2}


def summary(accuracy: float) -> dict[str, Any]:
    shares = ("accuracy", "group_accuracy", "set_coverage", "rejected", "patches_on_signal")
    metrics = {name: estimate(accuracy) for name in shares}
    of_class = {"num": 10, "recall": estimate(accuracy), "precision": estimate(0.5)}
    classes = {name: of_class for name in CLASSES}
    classes[HOSTILE] = of_class | {"precision": None}
    sure = {"low": 0.6, "high": 0.7, "num": 40, "confidence": 0.65, "accuracy": estimate(0.7)}
    return {
        "num": 40,
        "num_groups": 20,
        "metrics": metrics | {"vote_accuracy": None, "nll": estimate(0.5)},
        "classes": classes,
        "confusion": [[9, 1, 0], [0, 10, 0], [2, 0, 18]],
        "families": {"model": {"accuracy": estimate(0.9), "within": None}},
        "domains": {"design": {"Clip": estimate(0.9), HOSTILE: estimate(0.25)}},
        "worst_domain": ["design", HOSTILE],
        "reliability": [sure],
        "risk_coverage": {"coverage": [0.5, 1.0], "risk": [0.0, 0.25], "aurc": estimate(0.1)},
        "views": [{"views": 1, "accuracy": estimate(0.7)}, {"views": 2, "accuracy": estimate(0.8)}],
    }


def result() -> dict[str, Any]:
    figure = Figure(title=f"Own {HOSTILE}", kind="bar", series={"a": Series(x=[HOSTILE], y=[0.5])})
    rule = "training-domain validation"
    scoring = {"time": 0.0, "rule": rule, "assay": "0.1.0", "code": "abc", "host": "secret-host"}
    fit = {"temperature": 1.25, "coverage": 0.9, "quantile": 0.5, "num": 40, "num_groups": 20}
    return {
        "schema": 1,
        "rule": rule,
        "oracle": False,
        "seed": 3,
        "classes": CLASSES,
        "decision": fit | {"costs": None, "positive": None, "threshold": None},
        "sets": {"val": summary(0.9), "test_seen": summary(0.812), "test_unseen": summary(0.7)},
        "measures": to_json(STANDARD),
        "figures": [figure.to_dict()],
        "tried": 1,
        "scorings": [scoring | {"tried": 1, "decide": {}}],
    }


def comparison(p_holm: float = 0.002, difference: float = 0.4) -> dict[str, Any]:
    bounds = {"value": difference, "low": difference - 0.1, "high": difference + 0.1}
    pair = {
        "first_name": "fingerprint",
        "name": "random",
        "first": estimate(0.812),
        "second": estimate(0.412),
        "difference": estimate(0.4) | bounds,
        "p": p_holm / 2,
        "p_holm": p_holm,
        "verdict": "is not read",
        "mcnemar": {"unit": "groups", "only_first": 9, "only_second": 1, "p": 0.02},
    }
    compared = [
        {"set": name, "metric": metric} | pair
        for name in ("test_seen", "test_unseen")
        for metric in ("accuracy", "group_accuracy")
    ]
    sets = {"test_seen": {"metrics": summary(0.4)["metrics"]}}
    return {
        "method": "fingerprint",
        "comparisons": compared,
        "runs": {"random": {"folder": "r", "seed": 3, "sets": sets}},
    }


def write(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(json.dumps(value))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run's directory, small and hostile."""
    folder = tmp_path / "fingerprint-0123456789ab"
    (folder / "samples").mkdir(parents=True)
    launch = {"time": 0.0, "workers": 2, "strategy": "ddp", "device": "cpu"}
    record = {
        "schema": 1,
        "state": "finished",
        "task": "fingerprint",
        "seconds": 3725.0,
        "measured": {
            "num_params": 115_088.0,
            "num_trainable": 20_736.0,
            "macs": 1.814e9,
            "trainable_macs": 907e6,
            "train_s": 3661.0,
        },
        "launches": [launch | {"assay": "0.1.0", "host": "secret-host"}],
        "recipe": "aaaabbbbcccc",
        "data": "ddddeeeeffff",
        "split": {"groups": 20, "dropped": 2, "near_duplicates_test_seen": 7},
        "quarantined": [{"row": 3, "reason": "/home/alice/parts/a.png is truncated"}],
    }
    config = {
        "data": {"root": "/home/alice/parts"},
        "split": {"unseen_domain": "design", "seed": 0},
        "train": {"select": "accuracy", "epochs": 2},
        "model": {"name": HOSTILE, "gates": True},
    }
    write(folder, "run.json", record)
    write(folder, "config.json", config)
    write(folder, "result.json", result())
    write(folder, "comparison.json", comparison())
    lines = [{"kind": "start", "step": 0, "epoch": 0, "total": 4}]
    for step in (1, 2, 2, 3, 4):  # step 2 twice: a resumed run
        scalars = {"loss": 1.0 / step, "lr": 0.1, "data_wait": 0.5}
        lines.append({"kind": "step", "step": step, "epoch": 0} | scalars)
    lines.append({"kind": "val", "step": 2, "epoch": 0, "accuracy": 0.75, "nll": 0.9, "val_s": 1})
    lines.append({"kind": "val", "step": 4, "epoch": 1, "accuracy": 0.75, "nll": 0.5, "val_s": 1})
    lines.append({"kind": "epoch", "step": 4, "epoch": 1, "samples_per_s": 12.0, "memory_mb": 1000})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    columns = {
        "id": [str(i) for i in range(12)],
        "split": ["train"] * 6 + ["val"] * 3 + ["test_seen"] * 2 + ["test_unseen"],
        "group": [f"g{i // 2}" for i in range(12)],
        "label": [CLASSES[i % 3] for i in range(12)],
        "domain.design": ["Clip"] * 11 + [HOSTILE],
    }
    pq.write_table(pa.table(columns), folder / "split.parquet")
    cv2.imwrite(str(folder / "samples" / "0.jpg"), np.zeros((40, 60, 3), np.uint8))
    row = {"id": HOSTILE, "split": "test_seen", "group": "g", "domains": {"design": HOSTILE}}
    image = {"image": "0.jpg", "width": 60, "height": 40}
    boxes = [[0.0, 0.0, 30.0, 20.0], [30.0, 20.0, 60.0, 40.0]]
    answer = {"truth": CLASSES[0], "answer": HOSTILE, "prob": 0.987, "right": False}
    sample = {"kind": "error", "rejected": True, "boxes": boxes, "attn": [0.2, 0.8]}
    sample |= row | image | answer
    right = sample | {"kind": "example", "right": True, "answer": CLASSES[0], "prob": 0.655}
    pair = {"split": "test_seen", "bits": 5, "id": "one", "twin": "two"}
    pair |= {"image": "0.jpg", "twin_image": "0.jpg"}
    write(folder / "samples", "samples.json", {"samples": [sample, right], "near": [pair]})
    return folder


class Page(HTMLParser):
    """Elements of a page in order, its text, and whether every element is closed where it belongs."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_every_section_is_there_in_order(run):
    path = report.write_report(run)
    assert path == run / "report.html"
    page = Page(path.read_text())
    ids = [a["id"] for a in page.named("section") if "id" in a]
    assert ids == SECTIONS.split()
    links = [a["href"] for a in page.named("a")]
    assert links == [f"#{name}" for name in ids]


def test_the_answer_leads(run):
    text = Page(report.render(run)).text
    start = text.index("fingerprint is better than random on known designs and unseen designs.")
    assert start < text.index("Numbers")
    head = text[: text.index("Numbers", start + 1)]
    for words in (
        "+0.400 in accuracy over random [+0.300, +0.500], p = 0.002",
        "40 images of 20 groups",
        "0.812 [0.712, 0.912]",
        "0.412 [0.312, 0.512]",
        "training-domain validation",
        "seed 3",
        "1 configuration tried",
        "test scored once",
        "Holm over 4 comparisons",
    ):
        assert words in head
    assert "ORACLE" not in text
    assert "Scoring 2" not in text


def test_no_difference_is_said_in_words(run):
    write(run, "comparison.json", comparison(p_holm=0.4, difference=0.01))
    text = Page(report.render(run)).text
    verdict = "fingerprint is not significantly different from random on known designs and"
    assert f"{verdict} unseen designs." in text
    assert "p = 0.400 not significantly different" in text
    assert "better than" not in text


def test_two_groups_lead_with_no_verdict(run):
    made = comparison(p_holm=0.036, difference=-0.4)
    for c in made["comparisons"]:
        c["difference"] |= {"num_groups": 2, "num_effective": 2.0}
    write(run, "comparison.json", made)
    text = Page(report.render(run)).text
    assert "is not decided (too few or too unequal groups) against random on known designs" in text
    assert "too few or too unequal groups to compare (effective 2.0 of 2); not decided" in text
    assert "is worse than" not in text
    assert "not significantly different" not in text


def test_a_worse_method_is_said_to_be_worse(run):
    write(run, "comparison.json", comparison(difference=-0.2))
    text = Page(report.render(run)).text
    assert "fingerprint is worse than random" in text
    assert "\N{MINUS SIGN}0.200 in accuracy against random" in text


def test_each_set_and_baseline_gets_its_own_verdict(run):
    made = comparison()
    unseen = [c for c in made["comparisons"] if c["set"] == "test_unseen"]
    for c in unseen:
        c["p_holm"] = 0.05
    made["comparisons"] += [
        copy.deepcopy(c) | {"name": n} for n in ("erm", "{probe}") for c in unseen
    ]
    write(run, "comparison.json", made)
    text = Page(report.render(run)).text
    assert (
        "fingerprint is better than random on known designs, not significantly different from it on unseen designs; "
        "it is not significantly different from erm and {probe} on unseen designs."
    ) in text


def test_oracle_scorings_tries_and_warnings_are_marked(run):
    values = result() | {"oracle": True, "rule": "oracle", "tried": 24}
    values["scorings"] *= 2
    write(run, "result.json", values)
    record = json.loads((run / "run.json").read_text())
    write(run, "run.json", record | {"warnings": [f"Constant {HOSTILE} answers."]})
    text = Page(report.render(run)).text
    numbers = text.index("Numbers")
    marks = ("ORACLE.", "Scoring 2 of test.", "24 configurations tried", "test scored 2 times")
    for words in (*marks, f"Constant {HOSTILE} answers."):
        assert text.index(words) < numbers


def test_a_test_domain_that_was_seen_is_marked_before_any_number(run):
    write(run, "result.json", result() | {"transductive": True})
    text = Page(report.render(run)).text
    assert text.index("TRANSDUCTIVE.") < text.index("Numbers")
    assert "ORACLE" not in text


def test_tables_say_what_the_files_say(run):
    text = Page(report.render(run)).text
    estimates = "0.812 [0.712, 0.912] 0.700 [0.600, 0.800] 0.900 [0.800, 1.000]"
    assert f"Accuracy images answered rightly {estimates}" in text
    assert re.search(r"Vote accuracy [a-z ]+ none none none", text)
    assert "Patches on signal 0.812" in text  # a task's own measure
    assert f"{HOSTILE} worst 40 20 0.250 [0.150, 0.350]" in text
    assert "lathe & saw taken for mill (2 of 20); mill taken for" in text.replace("&amp;", "&")
    assert "Families by model: the right family is named on 0.900" in text
    assert "there are no errors" in text
    assert "at least 90 %" in text
    assert "logits divided by 1.250" in text
    assert "said <script>" in text
    assert "left to a person" in text
    assert "1 h 2 min in all" in text
    assert "5 of 256 bits differ" in text
    assert "2 copies dropped" in text
    assert "epochs 2" in text
    assert "gates yes" in text
    assert "1970-01-01 00:00 UTC" in text
    assert "Recipe aaaabbbbcccc" in text
    assert "Data ddddeeeeffff" in text


def test_the_page_says_what_was_trained_and_what_it_costs(run):
    text = Page(report.render(run)).text
    for words in (
        "Parameters 115 k 20.7 k 18 %",
        "Multiply-accumulates of one image 1.81 G 907 M 50 %",
        "Trained in 1 h 1 min, looks at validation included.",
    ):
        assert words in text
    record = json.loads((run / "run.json").read_text())
    counted = {"num_params": 1000.0, "num_trainable": 0.0}
    write(run, "run.json", record | {"measured": counted})
    text = Page(report.render(run)).text
    assert "Parameters 1 k 0 0 %" in text
    assert "Multiply-accumulates" not in text
    del record["measured"]  # an older run
    write(run, "run.json", record)
    assert "What was trained" not in Page(report.render(run)).text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1 k"),
        (999_600, "1 M"),
        (85_798_656, "85.8 M"),
        (2e12, "2 T"),
    ],
)
def test_large_numbers_are_written_in_three_digits(value, text):
    assert count(value) == text


@pytest.mark.parametrize("num_dropped", [0, 9])
def test_a_leak_is_said_loudly_with_what_was_done(run, num_dropped):
    record = json.loads((run / "run.json").read_text())
    record["split"]["near_dropped"] = num_dropped
    leak = {"num": 50, "near": 29, "classes": {"mill": [20, 0], "drill": [30, 29]}}
    none = {"num": 40, "near": 0, "classes": {"mill": [40, 0]}}
    record["leaks"] = {"test_seen": leak, "test_unseen": none}
    write(run, "run.json", record)
    page = Page(report.render(run)).text
    assert "LEAK. 58 % of the test_seen images (29 of 50) have a near-copy in train" in page
    assert ("was left out of train here" in page) == (num_dropped > 0)
    assert ("says little of parts that were not trained on" in page) == (num_dropped == 0)
    assert "29 of 50 images have a near-copy in train (mill 0 of 20, drill 29 of 30)" in page
    assert page.count("LEAK") == 1


def test_the_data_card_counts_the_split(run):
    text = Page(report.render(run)).text
    rows = pq.read_table(run / "split.parquet").to_pylist()
    for name, shown, near in (
        ("train", "Train", ""),
        ("test_seen", "Known designs test_seen", " 7"),
    ):
        own = [r for r in rows if r["split"] == name]
        distinct = [len({r[c] for r in own}) for c in ("group", "label", "domain.design")]
        assert f"{shown} {len(own)} {' '.join(map(str, distinct))}{near}" in text
    by_class = Counter((r["label"], r["split"]) for r in rows)
    order = ["train", "val", "test_seen", "test_unseen"]
    assert f"mill {' '.join(str(by_class['mill', s]) for s in order)}" in text


def test_hostile_names_are_only_ever_text(run):
    page = Page(report.render(run))
    assert not page.named("script")
    assert page.text.count(HOSTILE) > 8
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert "javascript:" not in " ".join(str(v) for v in attributes.values())


def test_nothing_is_loaded_and_nothing_runs(run):
    text = report.render(run)
    page = Page(text)
    loading = {"script", "link", "iframe", "object", "embed", "base"}
    assert not loading & {tag for tag, _ in page.elements}
    for _, attributes in page.elements:
        for name in ("src", "href", "srcset", "data", "xlink:href", "poster", "action"):
            assert str(attributes.get(name) or "#").startswith(("#", "data:image/jpeg;base64,"))
    css = text[text.index("<style>") : text.index("</style>")]
    assert not re.search(r"@import|url\(|@font-face|https?:", css)


def test_no_path_and_no_host_of_the_machine_is_told(run):
    text = report.render(run)
    for secret in ("/home/alice", "alice", "secret-host", str(run.parent)):
        assert secret not in text
    assert "a.png is truncated" in text


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("/home/alice/parts/a.png is cut", "\N{HORIZONTAL ELLIPSIS}/a.png is cut"),
        ("C:\\Users\\alice\\a.png", "\N{HORIZONTAL ELLIPSIS}/a.png"),
        ("~/runs/x", "\N{HORIZONTAL ELLIPSIS}/x"),
        ("cannot read '/a/b/c'.", "cannot read '\N{HORIZONTAL ELLIPSIS}/c'."),
        ("{label}/{design}/x", "{label}/{design}/x"),
        ("3/4 of 5", "3/4 of 5"),
    ],
)
def test_paths_lose_their_folders_and_other_text_stays(text, kept):
    assert report._without_paths({"k": [text]}) == {"k": [kept]}


def test_the_page_is_built_as_pages_should_be(run):
    text = report.render(run)
    page = Page(text)  # every element closed where it belongs
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    assert all(a.get("scope") in ("row", "col") for a in page.named("th"))
    assert all(a.get("alt") for a in page.named("img"))
    assert all(a.get("aria-label") or a.get("aria-hidden") for a in page.named("svg"))
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for drawing in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(drawing)


def test_equal_runs_make_equal_pages(run, tmp_path):
    first = report.render(run)
    assert report.render(run) == first
    elsewhere = tmp_path / "other" / run.name
    shutil.copytree(run, elsewhere)
    assert report.render(elsewhere) == first


def test_what_is_missing_is_said(run):
    (run / "comparison.json").unlink()
    shutil.rmtree(run / "samples")
    (run / "metrics.jsonl").unlink()
    text = Page(report.render(run)).text
    assert "fingerprint: accuracy 0.812 on known designs and 0.700 on unseen designs." in text
    assert "No other run was compared" in text
    assert "No images were kept" in text
    assert "kept no metrics" in text


def test_a_run_without_baselines_leads_with_its_own_numbers(run):
    write(run, "comparison.json", comparison() | {"comparisons": []})
    text = Page(report.render(run)).text
    assert "fingerprint: accuracy 0.812" in text
    assert "No other run was compared" in text


def test_a_trial_that_val_alone_judged_makes_a_page(run):
    values = result()
    values["sets"] = {name: each for name, each in values["sets"].items() if name == "val"}
    write(run, "result.json", values | {"scorings": []})
    (run / "comparison.json").unlink(missing_ok=True)
    assert "test was not scored." in Page(report.render(run)).text


def test_scores_without_classes_make_a_page(run):
    values = result() | {"classes": [], "decision": None, "figures": []}
    for name in values["sets"]:
        values["sets"][name] |= {
            "metrics": {"IoU": estimate(0.6)},
            "classes": {},
            "confusion": [],
            "families": {},
            "reliability": [],
            "risk_coverage": None,
            "views": [],
        }
    write(run, "result.json", values)
    (run / "comparison.json").unlink()
    samples = json.loads((run / "samples" / "samples.json").read_text())
    for sample in samples["samples"]:
        for key in ("truth", "answer", "prob", "right", "rejected"):
            del sample[key]
        sample["score"] = 0.125
    write(run / "samples", "samples.json", samples)
    text = Page(report.render(run)).text
    assert "fingerprint: IoU 0.600 on known designs" in text
    assert "The worst first, known designs 0.125" in text
    assert "no confusion" in text
    assert "no class to an image" in text


def test_a_report_stays_below_five_megabytes(run):
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), dtype=np.uint8)
    cv2.imwrite(str(run / "samples" / "big.jpg"), noise, [cv2.IMWRITE_JPEG_QUALITY, 95])
    samples = json.loads((run / "samples" / "samples.json").read_text())
    samples["samples"] = [samples["samples"][0] | {"image": "big.jpg"} for _ in range(30)]
    write(run / "samples", "samples.json", samples)
    path = report.write_report(run)
    assert path.stat().st_size < 5_000_000
    assert re.search(r"2\d images are left out", Page(path.read_text()).text)


def test_images_come_from_the_folder_of_samples_only(run):
    (run.parent / "secret.jpg").write_bytes((run / "samples" / "0.jpg").read_bytes())
    samples = json.loads((run / "samples" / "samples.json").read_text())
    samples["samples"][0]["image"] = "../../secret.jpg"
    write(run / "samples", "samples.json", samples)
    assert "1 images are left out" in Page(report.render(run)).text


def test_measures_are_named_by_the_result_and_without_it_by_their_keys(run):
    assert "Patches on signal" in Page(report.render(run)).text
    described = {"patches_on_signal": {"label": "On the trace", "meaning": "where it was planted"}}
    write(run, "result.json", result() | {"measures": described})
    text = Page(report.render(run)).text
    assert "On the trace where it was planted" in text
    assert "Vote accuracy" in text


@pytest.mark.parametrize("state", ["new", "running", "stopped", "failed"])
def test_an_unfinished_run_has_no_report(run, state):
    write(run, "run.json", {"schema": 1, "state": state, "task": "fingerprint"})
    with pytest.raises(RunError, match=state):
        report.write_report(run)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("result.json", {"rule": "x", "sets": {}}, "judge the run again"),
        ("result.json", {"schema": 2}, "update Assay"),
        (
            "result.json",
            {"schema": 1, "rule": 7},
            r"result\.json: field 'rule' is 7; it must be text",
        ),
        (
            "comparison.json",
            {"method": "a", "runs": {}},
            r"comparison\.json: field 'comparisons' is missing",
        ),
        ("run.json", {"schema": 9, "state": "finished"}, "update Assay"),
        ("result.json", None, "has no result.json"),
        ("split.parquet", None, r"split\.parquet is missing"),
        ("config.json", None, r"config\.json is missing"),
    ],
)
def test_files_of_another_schema_or_missing_are_refused(run, name, value, words):
    if value is None:
        (run / name).unlink()
    else:
        write(run, name, value)
    with pytest.raises(RunError, match=words):
        report.write_report(run)


def test_a_damaged_file_is_refused(run):
    (run / "result.json").write_text('{"schema": 1, "se')
    with pytest.raises(RunError, match="damaged"):
        report.write_report(run)


DAMAGEABLE = ("run.json", "config.json", "result.json", "comparison.json", "split.parquet")


@pytest.mark.parametrize(
    "name", [*DAMAGEABLE, "metrics.jsonl", "samples/samples.json", "bundle/bundle.json"]
)
def test_a_file_damaged_in_any_way_is_refused_in_a_sentence(run, name, damages):
    for damage in damages(run / name):
        told = ""
        try:
            report.render(run)
        except AssayError as error:
            told = str(error)
        assert "\n" not in told
        # of the metrics a last line that was cut off is passed over
        assert told or name == "metrics.jsonl", damage


def test_a_failed_rebuild_keeps_the_old_page(run):
    before = report.write_report(run).read_text()
    (run / "result.json").unlink()
    with pytest.raises(RunError):
        report.write_report(run)
    assert (run / "report.html").read_text() == before
    assert not list(run.glob(".report*"))


def test_repeated_lines_of_a_resumed_run_count_once(run):
    metrics = results.read_metrics(run / "metrics.jsonl")
    assert [line["step"] for line in metrics["step"]] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("select", "vals", "chosen"),
    [
        ("accuracy", [(0.5, 0.1), (0.75, 0.9), (0.75, 0.5), (0.7, 0.1)], [3.0, 0.75]),
        ("nll", [(0.5, 0.3), (0.9, 0.2), (0.95, 0.2), (1.0, 0.4)], [3.0, 0.2]),
        ("accuracy", [(0.5, None), (0.75, None)], [2.0, 0.75]),
        ("iou", [(0.5, 0.3), (0.9, 0.2)], None),
    ],
)
def test_the_ring_is_where_the_rule_chose(select, vals, chosen):
    lines = [{"step": i + 1, "accuracy": a, "nll": n} for i, (a, n) in enumerate(vals)]
    figures = charts.curves({"step": [], "val": lines, "epoch": []}, select)
    assert [figure.chosen for figure in figures] == [chosen]


def test_curves_leave_out_what_was_not_finite_and_pool_what_is_long():
    steps = [{"step": i + 1, "loss": None if i == 5 else float(i)} for i in range(1200)]
    figure = charts.curves({"step": steps, "val": [], "epoch": []}, "accuracy")[0]
    series = figure.series["loss"]
    assert len(series.y) == 120
    assert series.low is not None
    assert series.high is not None
    assert series.low[0] == 0.0
    assert series.high[-1] == 1199.0
    assert all(a <= b <= c for a, b, c in zip(series.low, series.y, series.high, strict=True))


def luminance(colour: list[float]) -> float:
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: list[float], other: list[float]) -> float:
    """WCAG 2.1, success criterion 1.4.3."""
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1])
def test_text_can_be_read_in_light_and_dark(theme):
    css = (report.PAGES / "report.css").read_text()
    found = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[theme]
    colours = {
        name: [int(value[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        for name, value in re.findall(r"--(\w+): #([0-9a-f]{6})", found)
    }
    for ground in ("paper", "tint"):
        for text in ("ink", "muted", "s0", "good", "bad"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for cell in ("right", "wrong"):  # the strongest shade that a matrix draws
        shaded = [0.75 * c + 0.25 * p for c, p in zip(colours[cell], colours["paper"], strict=True)]
        assert contrast(colours["ink"], shaded) >= 4.5, cell
    for line in ("s0", "s1", "s2", "s3", "s4", "s5"):
        assert contrast(colours[line], colours["paper"]) >= 3, line


def test_time_is_shared_out_among_the_parts_of_an_update():
    parts = {"wait_s": 0.5, "cut_s": 1.0, "forward_s": 1.5, "backward_s": 4.0, "update_s": 2.0}
    steps = [{"step": i, "step_s": 10.0} | parts for i in (1, 2)]
    *_, figure = charts.curves({"step": steps, "val": [], "epoch": []}, "accuracy")
    (shares,) = figure.series.values()
    assert dict(zip(shares.x, shares.y, strict=True)) == pytest.approx(
        {"wait": 0.05, "cut": 0.1, "forward": 0.15, "backward": 0.4, "update": 0.2, "other": 0.1}
    )
    assert "2 updates of 10 s" in figure.caption
