"""A bundle that was changed, or is not repeated here, does not open."""

import hashlib
import json

import numpy as np
import onnxruntime
import pytest

from assay.bundle.bundle import Bundle
from assay.errors import BundleError, ImageError

CLASSES = ["low", "middle", "high"]
SECRET = "/home/someone/secret"


def test_a_card_lists_every_file_and_its_golden_output(sealed, images):
    card = json.loads((sealed / "bundle.json").read_text())
    files = {path.name for path in sealed.iterdir()}
    sealed_files = {"classify.onnx", "scorer.onnx", "golden.png"}
    assert set(card["sha256"]) == sealed_files
    assert files == sealed_files | {"bundle.json"}
    for name, digest in card["sha256"].items():
        assert hashlib.sha256((sealed / name).read_bytes()).hexdigest() == digest
    assert (sealed / "golden.png").read_bytes() == images[0].read_bytes()
    assert card["golden"]["probs"] == pytest.approx(Bundle(sealed).predict(images[0]).probs)


def test_sealed_graphs_keep_their_answers_and_no_trace_of_their_machine(
    sealed, tmp_path, write_graphs
):
    write_graphs(tmp_path)
    feed = {"overview": np.random.default_rng(0).random((2, 3, 16, 16), dtype=np.float32)}
    answers = []
    for place in (tmp_path, sealed):
        assert (SECRET.encode() in (place / "scorer.onnx").read_bytes()) == (place == tmp_path)
        session = onnxruntime.InferenceSession(place / "scorer.onnx")
        answers.append(session.run(["scores"], feed)[0])
    assert np.array_equal(*answers)


@pytest.mark.parametrize("name", ["classify.onnx", "golden.png"])
def test_a_changed_file_is_refused(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name} is missing or was changed"):
        Bundle(folder)


def test_a_missing_file_is_refused(folder):
    (folder / "scorer.onnx").unlink()
    with pytest.raises(BundleError, match=r"scorer\.onnx is missing"):
        Bundle(folder)


def test_a_newer_schema_is_refused_before_anything_else(folder, edit):
    edit(folder, schema=5, sha256="unknown to this version")
    with pytest.raises(BundleError, match="has schema 5, this Assay knows 4; update Assay"):
        Bundle(folder)


def test_a_bundle_from_before_decisions_is_refused(folder, edit):
    edit(folder, schema=1, temperature=2.0)
    with pytest.raises(BundleError, match="schema 1, this Assay knows 4; export the bundle again"):
        Bundle(folder)


@pytest.mark.parametrize("wrong", [0.01, float("nan")])
def test_a_golden_output_that_is_not_repeated_is_refused(folder, wrong, edit):
    golden = json.loads((folder / "bundle.json").read_text())["golden"]
    golden["probs"]["low"] += wrong
    edit(folder, golden=golden)
    with pytest.raises(BundleError, match="does not repeat its golden output"):
        Bundle(folder)
    Bundle(folder, verify=False)


def test_a_golden_output_within_the_tolerance_is_repeated(folder, edit):
    golden = json.loads((folder / "bundle.json").read_text())["golden"]
    golden["probs"]["low"] += 5e-4
    edit(folder, golden=golden)
    assert Bundle(folder).classes == CLASSES


def test_a_damaged_card_names_the_file_and_the_field(folder, edit):
    edit(folder, golden={"image": "golden.png", "probs": {"a": "sure"}})
    message = r"bundle\.json: field 'golden\.probs\.a' is 'sure'; it must be a number"
    with pytest.raises(BundleError, match=message):
        Bundle(folder)


def test_an_unknown_pipeline_is_refused_by_name(folder, edit):
    edit(folder, pipeline={"kind": "volumes"})
    with pytest.raises(BundleError, match="'volumes'; this Assay has: image, patches"):
        Bundle(folder)


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '"schema"'])
def test_what_is_no_bundle_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "bundle.json").write_text(text)
    with pytest.raises(BundleError, match="no bundle"):
        Bundle(tmp_path)


def test_an_unreadable_image_is_an_image_error(sealed):
    with pytest.raises(ImageError):
        Bundle(sealed).predict(b"not an image")
