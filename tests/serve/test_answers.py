"""Answers over HTTP are the bundle's own, and the models that give them are described, promoted and never mixed."""

import asyncio
import base64
import json
from typing import Any

import cv2
import httpx
import numpy as np

from assay.bundle.bundle import Bundle
from assay.bundle.promotion import promote
from assay.bundle.registry import Registry
from assay.serve.inspector import OpenBundle


def bundle_of(registry, task: str, alias: str = "champion") -> Bundle:
    return Bundle(registry.fetch(registry.holder(task, alias)))


def test_an_answer_is_the_bundles(ask, registry, pictures):
    for alias in ("champion", "challenger"):
        opened = bundle_of(registry, "parts", alias)
        for path in pictures:
            reply = ask("POST", f"/v1/parts?model={alias}", content=path.read_bytes())
            assert reply.status_code == 200, reply.text
            body, expected = reply.json(), opened.predict(path)
            assert body["answer"] == body["views"][0]["answer"]
            assert body["answer"] == {
                "label": expected.label,
                "probs": expected.probs,
                "set": list(expected.set),
                "rejected": expected.rejected,
            }
            assert body["classes"] == opened.classes
            patches = body["views"][0]["patches"]
            assert [patch["box"] for patch in patches] == expected.boxes.tolist()
            assert [patch["score"] for patch in patches] == expected.attn.tolist()
            assert body["model"]["version"] == registry.holder("parts", alias).version
            assert body["model"]["alias"] == alias
            assert body["request"] == reply.headers["x-request-id"]


def test_views_of_one_part_come_as_a_form_and_are_judged_together(ask, registry, pictures):
    opened = bundle_of(registry, "parts")
    files = [("image", (path.name, path.read_bytes(), "image/png")) for path in pictures]
    body = ask("POST", "/v1/parts", files=files).json()
    views = [opened.predict(path) for path in pictures]
    together = opened.together(views)
    assert body["answer"]["probs"] == together.probs
    assert body["answer"]["set"] == list(together.set)
    assert [view["answer"]["probs"] for view in body["views"]] == [view.probs for view in views]


def test_a_mask_comes_as_png_as_runs_or_not_at_all(ask, registry, pictures):
    expected = bundle_of(registry, "layers").predict(pictures[1])
    assert 0 < (expected.mask > 0).mean() < 1
    bodies = {
        form: ask("POST", f"/v1/layers?mask={form}", content=pictures[1].read_bytes()).json()
        for form in ("png", "rle", "none")
    }
    views = {form: body["views"][0] for form, body in bodies.items()}
    png = np.frombuffer(base64.b64decode(views["png"]["mask"]["png"]), np.uint8)
    assert np.array_equal(cv2.imdecode(png, cv2.IMREAD_UNCHANGED), expected.mask)
    counts = views["rle"]["mask"]["rle"]["pore"]
    inside = np.repeat(np.arange(len(counts)) % 2, counts)
    height, width = expected.mask.shape
    assert np.array_equal(inside.reshape(width, height).T, expected.mask)
    assert views["none"]["mask"] is None
    for form, view in views.items():
        assert bodies[form]["answer"] is None
        assert (view["height"], view["width"]) == (height, width)
        assert [(d["label"], d["area_px"], d["box"]) for d in view["defects"]] == [
            (d.label, d.area_px, d.box.tolist()) for d in expected.defects
        ]


def test_evidence_comes_where_it_is_asked_for(ask, registry, pictures, is_refused):
    opened = bundle_of(registry, "parts")
    files = [("image", (path.name, path.read_bytes(), "image/png")) for path in pictures]
    for asked in ("1", "true"):
        views = ask("POST", f"/v1/parts?explain={asked}", files=files).json()["views"]
        for path, view in zip(pictures, views, strict=True):
            expected = opened.predict(path)
            evidence = view["evidence"]
            png = np.frombuffer(base64.b64decode(evidence["png"]), np.uint8)
            grey = cv2.imdecode(png, cv2.IMREAD_UNCHANGED)
            share = expected.evidence.clip(0) / expected.evidence.max()
            assert np.abs(grey / 255 - share).max() <= 0.5 / 255 + 1e-6
            assert grey.max() == 255
            assert evidence["box"] == expected.boxes[0].tolist() == [0, 0, 80, 60]
            assert evidence["label"] == view["answer"]["label"]
    whole = pictures[0].read_bytes()
    plain, off = (
        ask("POST", f"/v1/parts{query}", content=whole).json()["views"][0]
        for query in ("", "?explain=0")
    )
    assert plain["evidence"] is None
    assert off == plain
    # a mask shows where the defect is by itself
    view = ask("POST", "/v1/layers?explain=1", content=whole).json()["views"][0]
    assert view["evidence"] is None
    assert view["mask"] is not None
    assert is_refused(ask("POST", "/v1/parts?explain=map", content=whole), 422, "explain")


def test_models_say_what_answers_and_how_good_it_is(ask, registry):
    body = ask("GET", "/v1/models").json()
    assert set(body) == {"parts", "layers"}
    assert set(body["parts"]) == {"champion", "challenger"}
    champion = registry.holder("parts", "champion")
    described = body["parts"]["champion"]
    for name in ("version", "run", "data"):
        assert described[name] == getattr(champion, name)
    assert described["metrics"] == json.loads(json.dumps(champion.metrics))


def test_a_version_of_the_registry_is_promoted_by_the_rules_of_promote(
    ask, here, decoders, tmp_path, make_bundle, judged_rows, is_refused
):
    registry = Registry(str(tmp_path / "registry"))
    versions = [
        promote(registry, make_bundle(tmp_path / name, bias=bias), judged_rows(0.9), alias).version
        for name, bias, alias in (("a", 0.0, "champion"), ("b", 1.0, "challenger"))
    ]
    worse = make_bundle(tmp_path / "c", bias=2.0)
    bad = promote(registry, worse, judged_rows(0.1), "challenger").version
    service = type(here)(registry, decoders)

    def put(version: str, task: str = "parts", more: str = "") -> httpx.Response:
        return ask("POST", f"/v1/models/{task}?version={version}{more}", service)

    for version in (versions[1], versions[0]):
        record = registry.record("parts", put(version).json()["record"])
        assert registry.holder("parts", "champion") == record
        assert (record.version, record.kind) == (version, "promoted")
    assert put(versions[1], more="&model=challenger").status_code == 200
    assert registry.holder("parts", "challenger").version == versions[1]
    assert is_refused(put(bad), 409, "significantly worse")
    assert is_refused(put("none"), 409, "no version 'none'")
    assert is_refused(put(versions[1], "other"), 404, "no such task")
    assert is_refused(put(versions[1], more="&to=1"), 422, "'to' is unknown")
    (registry.fetch(registry.holder("parts", "challenger")) / "classify.onnx").write_bytes(b"no")
    assert is_refused(put(versions[1]), 409, "log says why")
    assert registry.holder("parts", "champion").version == versions[0]


def test_one_swap_does_not_mix_two_models_in_one_answer(here, registry, pictures):
    """The bundle that began an answer ends it, whatever is promoted meanwhile."""
    inspector = here.inspectors["parts"]
    before = inspector.opened["champion"].model.version
    swapped = False

    async def swapping(opened: OpenBundle, content: bytes) -> Any:
        nonlocal swapped
        if not swapped:
            swapped = True
            other = registry.holder("parts", "challenger").id
            inspector.configure({"champion": other, "variant": "fp32"})
        return (opened.bundle.predict(content), (60, 80), None)

    images = [path.read_bytes() for path in pictures[:2]]
    reply = asyncio.run(inspector.answer(images, "champion", "none", False, swapping))
    assert reply["model"]["version"] == before
    expected = [bundle_of(registry, "parts").predict(path).probs for path in pictures[:2]]
    assert [view["answer"]["probs"] for view in reply["views"]] == expected
    assert inspector.opened["champion"].model.version != before
