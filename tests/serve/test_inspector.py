"""What is opened answers; what does not verify leaves the present in its place."""

import asyncio

import numpy as np
import pytest

from assay.bundle.bundle import Bundle
from assay.bundle.promotion import promote
from assay.bundle.registry import Registry
from assay.data.images.pyramid import ImagePyramid
from assay.errors import BundleError, RegistryError
from assay.metrics.drift import LEAST
from assay.serve.inspector import Inspector, inspect


@pytest.fixture
def winners(tmp_path, make_bundle, judged_rows) -> Registry:
    registry = Registry(str(tmp_path / "registry"))
    promote(registry, make_bundle(tmp_path / "a"), judged_rows(0.9), "champion")
    promote(registry, make_bundle(tmp_path / "b", bias=1.0), judged_rows(0.9), "challenger")
    return registry


def told(winners: Registry, *aliases: str) -> dict[str, str]:
    return {alias: winners.holder("parts", alias).id for alias in aliases} | {"variant": "int8"}


def test_a_champion_that_does_not_verify_is_no_start(winners):
    record = winners.holder("parts", "champion")
    (winners.fetch(record) / "classify.onnx").write_bytes(b"other")
    inspector = Inspector(winners, "parts")
    with pytest.raises(BundleError, match="changed"):
        inspector.configure(told(winners, "champion"))
    assert inspector.opened == {}
    card = winners.fetch(record) / "bundle.json"
    card.write_text(card.read_text() + " ")
    with pytest.raises(RegistryError, match="changed"):
        inspector.configure(told(winners, "champion"))


def test_a_next_one_that_does_not_verify_leaves_the_present(winners):
    inspector = Inspector(winners, "parts")
    inspector.configure(told(winners, "champion", "challenger"))
    present = inspector.opened["champion"]
    assert present.model.variant == "fp32"  # it has no int8 graphs
    other = winners.holder("parts", "challenger")
    (winners.fetch(other) / "classify.onnx").write_bytes(b"other")
    inspector.configure({"champion": other.id, "challenger": "", "variant": "fp32"})
    assert inspector.opened == {"champion": present}
    assert inspector.refused == {"champion": other.id}
    assert inspector.describe()["champion"]["refused"] == {"champion": other.id}
    inspector.configure(told(winners, "champion"))
    assert inspector.opened["champion"] is present  # the same is not opened again
    assert inspector.refused == {}


def test_whatever_a_next_one_raises_the_present_answers_on(winners, monkeypatch):
    inspector = Inspector(winners, "parts")
    inspector.configure(told(winners, "champion"))
    present = dict(inspector.opened)
    other = winners.holder("parts", "challenger").id
    for error in (MemoryError(), KeyError("kind"), RuntimeError("onnxruntime"), RecursionError()):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr("assay.serve.inspector.Bundle", fail)
        inspector.configure({"champion": other, "challenger": other, "variant": "fp32"})
        assert inspector.opened == present
        assert set(inspector.refused) == {"champion", "challenger"}


def test_a_golden_image_that_is_lost_is_no_sample_and_no_fault(winners):
    inspector = Inspector(winners, "parts")
    inspector.configure(told(winners, "champion"))
    golden = winners.fetch(winners.holder("parts", "champion")) / "golden.png"
    assert inspector.sample() == golden.read_bytes()
    golden.unlink()
    assert inspector.sample() is None
    (golden.parent / "bundle.json").write_text("{}")
    assert inspector.sample() is None


class Breaking(Bundle):
    """A bundle whose graphs cannot take one of the images."""

    def __init__(self, card):
        self.card = card

    def predict_each(self, entries):
        if any(entry.size == (40, 48) for entry in entries):
            raise RuntimeError("a graph broke")
        return [entry.size for entry in entries]


def test_what_breaks_a_graph_reaches_its_own_request_alone(
    winners, pictures, make_bundle, tmp_path
):
    inspector = Inspector(winners, "parts")
    inspector.configure(told(winners, "champion", "challenger"))
    first, second = inspector.opened["champion"], inspector.opened["challenger"]
    whole = ImagePyramid.read(pictures[0])
    outcomes = inspect([(first, whole), (second, whole), (first, whole)])
    assert outcomes[0][0].probs == outcomes[2][0].probs == first.bundle.predict(pictures[0]).probs
    assert outcomes[1][0].probs == second.bundle.predict(pictures[0]).probs
    breaking = type(first)(Breaking(first.bundle.card), first.model, first.record, None)
    odd = ImagePyramid.read(winners.fetch(first.record) / "golden.png")
    good, broken, also = inspect([(breaking, whole), (breaking, odd), (breaking, whole)])
    assert good[0] == also[0] == (60, 80)
    assert isinstance(broken, RuntimeError)


def test_each_bundle_has_the_drift_of_what_it_answered(here, pictures):
    parts, layers = here.inspectors["parts"], here.inspectors["layers"]

    def ask(inspector, alias):
        images = [pictures[0].read_bytes()]
        asyncio.run(here.answer(inspector.task, images, alias, "none", False, None))

    for _ in range(LEAST):
        ask(parts, "champion")
        ask(layers, "champion")
    ask(parts, "challenger")
    champion, challenger = parts.opened["champion"], parts.opened["challenger"]
    embedding = champion.bundle.predict(pictures[0]).embedding
    # the card's mean is 0 and its scatter 1
    assert champion.drift.value == pytest.approx(np.linalg.norm(embedding), rel=1e-5)
    assert len(challenger.drift.recent) == 1
    assert challenger.drift.value is None
    assert layers.opened["champion"].drift is None  # its graph gives no embedding
