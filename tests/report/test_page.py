"""report.html: what it says, and that it needs nothing else."""

import json
import re
import shutil
from collections import Counter
from itertools import pairwise
from xml.etree import ElementTree

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from assay.report import page as report

SECTIONS = "numbers training errors domains trust own images data settings lineage"


def test_every_section_is_there_in_order(page_of, run):
    path = report.write_report(run)
    assert path == run / "report.html"
    page = page_of(path.read_text())
    ids = [a["id"] for a in page.named("section") if "id" in a]
    assert ids == SECTIONS.split()
    links = [a["href"] for a in page.named("a")]
    assert links == [f"#{name}" for name in ids]


def test_tables_say_what_the_files_say(hostile, page_of, run):
    text = page_of(report.render(run)).text
    estimates = "0.812 [0.712, 0.912] 0.700 [0.600, 0.800] 0.900 [0.800, 1.000]"
    assert f"Accuracy images whose likeliest class is the true one {estimates}" in text
    assert re.search(r"Vote accuracy [a-z ]+ none none none", text)
    assert "Patches on signal 0.812" in text  # a task's own measure
    assert f"{hostile} worst 40 20 0.250 [0.150, 0.350]" in text
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


def test_the_page_says_what_was_trained_and_what_it_costs(page_of, write, run):
    text = page_of(report.render(run)).text
    for words in (
        "Parameters 115 k 20.7 k 18 %",
        "Multiply-accumulates of one image 1.81 G 907 M 50 %",
        "Trained in 1 h 1 min, looks at validation included.",
    ):
        assert words in text
    record = json.loads((run / "run.json").read_text())
    counted = {"num_params": 1000.0, "num_trainable": 0.0}
    write(run, "run.json", record | {"measured": counted})
    text = page_of(report.render(run)).text
    assert "Parameters 1 k 0 0 %" in text
    assert "Multiply-accumulates" not in text
    del record["measured"]  # an older run
    write(run, "run.json", record)
    assert "What was trained" not in page_of(report.render(run)).text


@pytest.mark.parametrize("num_dropped", [0, 9])
def test_a_leak_is_said_loudly_with_what_was_done(page_of, write, run, num_dropped):
    record = json.loads((run / "run.json").read_text())
    record["split"]["near_dropped"] = num_dropped
    leak = {"num": 50, "near": 29, "classes": {"mill": [20, 0], "drill": [30, 29]}}
    none = {"num": 40, "near": 0, "classes": {"mill": [40, 0]}}
    record["leaks"] = {"test_seen": leak, "test_unseen": none}
    write(run, "run.json", record)
    page = page_of(report.render(run)).text
    assert "LEAK. 58 % of the test_seen images (29 of 50) have a near-copy in train" in page
    assert ("was left out of train here" in page) == (num_dropped > 0)
    assert ("says little of parts that were not trained on" in page) == (num_dropped == 0)
    assert "29 of 50 images have a near-copy in train (mill 0 of 20, drill 29 of 30)" in page
    assert page.count("LEAK") == 1


def test_where_costs_decide_a_class_that_must_not_be_missed_has_no_threshold(
    page_of, result, write, run
):
    values = result()
    values["decision"] |= {"costs": [[0, 1, 1], [20, 0, 1], [1, 1, 0]], "positive": 1}
    write(run, "result.json", values)
    text = page_of(report.render(run)).text
    assert "Answers have the least expected cost." in text
    assert "is answered from a probability" not in text


@pytest.mark.parametrize("threshold", [None, 0.3])
def test_errors_by_the_likeliest_class_are_not_taken_for_those_of_a_threshold(
    page_of, result, write, run, threshold
):
    values = result()
    values["decision"] |= {"positive": 1, "threshold": threshold}
    write(run, "result.json", values)
    said = "By the likeliest class of each image, as accuracy is. What is answered follows the threshold"
    assert (said in page_of(report.render(run)).text) == (threshold is not None)


@pytest.mark.parametrize(("num", "shown"), [(40, ""), (20, "n = 20 "), (3, "n = 3 ")])
def test_a_measure_of_other_rows_than_the_set_says_its_n(
    page_of, result, estimate, write, run, num, shown
):
    """Also where they happen to be as many as the set has groups."""
    values = result()
    values["sets"]["test_seen"]["metrics"]["recall"] = estimate(0.5, num=num)
    write(run, "result.json", values)
    text = page_of(report.render(run)).text
    assert f"Recall of the class that must not be missed {shown}0.500" in text


def test_the_data_card_counts_the_split(page_of, run):
    text = page_of(report.render(run)).text
    rows = pq.read_table(run / "split.parquet").to_pylist()
    for name, shown, near in (
        ("train", "Train", ""),
        ("test_seen", "Known designs test_seen", " 7"),
    ):
        chosen = [r for r in rows if r["split"] == name]
        distinct = [len({r[c] for r in chosen}) for c in ("group", "label", "domain.design")]
        assert f"{shown} {len(chosen)} {' '.join(map(str, distinct))}{near}" in text
    by_class = Counter((r["label"], r["split"]) for r in rows)
    order = ["train", "val", "test_seen", "test_unseen"]
    assert f"mill {' '.join(str(by_class['mill', s]) for s in order)}" in text


def test_a_figure_of_a_task_calls_its_set_as_the_page_does(page_of, result, write, run):
    values = result()
    values["figures"] += [
        figure | {"title": "Found by size, test_unseen"} for figure in values["figures"]
    ]
    write(run, "result.json", values)
    text = page_of(report.render(run)).text
    assert "Found by size, unseen designs" in text
    assert "Found by size, test_unseen" not in text


def test_few_images_a_second_are_not_written_as_none(page_of, run):
    lines = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(
        lines.replace('"samples_per_s": 12.0', '"samples_per_s": 0.316')
    )
    assert "; 0.316 images/s in the last" in page_of(report.render(run)).text


def test_a_run_without_workers_says_where_it_was_trained(page_of, write, run):
    record = json.loads((run / "run.json").read_text())
    record["launches"][0]["workers"] = 0
    write(run, "run.json", record)
    text = page_of(report.render(run)).text
    assert "Launch 1 1970-01-01 00:00 UTC, in the process itself, ddp on cpu" in text


def test_numbers_beside_images_and_of_mcnemar_are_explained(page_of, run):
    text = page_of(report.render(run)).text
    assert "Beside an answer: its calibrated probability." in text
    assert "McNemar: how many are right in fingerprint alone : in the other alone." in text


def test_hostile_names_are_only_ever_text(hostile, page_of, run):
    page = page_of(report.render(run))
    assert not page.named("script")
    assert page.text.count(hostile) > 8
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert "javascript:" not in " ".join(str(v) for v in attributes.values())


def test_a_long_name_wraps_and_pushes_no_number_out_of_view(page_of, run):
    """A table of classes or domains is as wide as its names, of which each stands in a box of limited width."""
    page = page_of(report.render(run))
    num_names = 2 * 3 + 2 * 2  # of classes and of domains, in two test sets
    assert [a.get("class") for a in page.named("span")].count("name") == num_names
    css = (report.PAGES / "report.css").read_text()
    (rule,) = re.findall(r"^\.name \{(.*)\}", css, re.MULTILINE)
    assert {"max-width", "overflow-wrap"} <= set(re.findall(r"([a-z-]+):", rule))
    (body,) = re.findall(r"^body \{(.*)\}", css, re.MULTILINE)
    assert "overflow-wrap: break-word" in body  # captions and headings name classes, too


def test_nothing_is_loaded_and_nothing_runs(page_of, run):
    text = report.render(run)
    page = page_of(text)
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


def test_the_page_is_built_as_pages_should_be(page_of, run):
    text = report.render(run)
    page = page_of(text)  # every element closed where it belongs
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


def test_scores_without_classes_make_a_page(page_of, estimate, result, write, run):
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
        sample |= {"score": 0.125, "is_picture": True}
    write(run / "samples", "samples.json", samples)
    text = page_of(report.render(run)).text
    assert "fingerprint: IoU 0.600 on known designs" in text
    assert "The worst first, known designs IoU 0.125" in text
    # no task but segmentation draws the mask of a rule beside its answer
    assert "the image, the answer, and the mask of a rule where the task has one" in text
    assert "no confusion" in text
    assert "no class to an image" in text


def test_more_classes_than_a_confusion_shows_are_said(page_of, run, monkeypatch):
    assert "No confusion is drawn" not in page_of(report.render(run)).text
    monkeypatch.setattr("assay.report.charts.MAX_CLASSES", 2)
    assert "No confusion is drawn of 3 classes" in page_of(report.render(run)).text


def test_no_word_has_a_colour_that_a_dark_page_would_not_change():
    page = (report.PAGES / "report.html").read_text()
    assert re.search(r'style="border-bottom: 3px solid #\w+">teal<', page)
    assert not re.search(r'style="[^"]*\bcolor:', page)


def test_a_report_stays_below_five_megabytes(page_of, write, run):
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), dtype=np.uint8)
    cv2.imwrite(str(run / "samples" / "big.jpg"), noise, [cv2.IMWRITE_JPEG_QUALITY, 95])
    samples = json.loads((run / "samples" / "samples.json").read_text())
    samples["samples"] = [samples["samples"][0] | {"image": "big.jpg"} for _ in range(30)]
    write(run / "samples", "samples.json", samples)
    path = report.write_report(run)
    assert path.stat().st_size < 5_000_000
    assert re.search(r"2\d images are left out", page_of(path.read_text()).text)


def test_images_come_from_the_folder_of_samples_only(page_of, write, run):
    (run.parent / "secret.jpg").write_bytes((run / "samples" / "0.jpg").read_bytes())
    samples = json.loads((run / "samples" / "samples.json").read_text())
    samples["samples"][0]["image"] = "../../secret.jpg"
    write(run / "samples", "samples.json", samples)
    assert "1 images are left out" in page_of(report.render(run)).text


def test_measures_are_named_by_the_result_and_without_it_by_their_keys(page_of, result, write, run):
    assert "Patches on signal" in page_of(report.render(run)).text
    described = {"patches_on_signal": {"label": "On the trace", "meaning": "where it was planted"}}
    write(run, "result.json", result() | {"measures": described})
    text = page_of(report.render(run)).text
    assert "On the trace where it was planted" in text
    assert "Vote accuracy" in text
