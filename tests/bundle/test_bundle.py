"""A bundle answers as its card says; one changed, or not repeated here, does not open."""

import dataclasses
import hashlib
import io
import json
import logging
import shutil
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import tifffile
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from torch import nn

from assay.bundle.bundle import Bundle
from assay.bundle.card import Card
from assay.bundle.seal import quantized_share, seal
from assay.data.images.pyramid import ImagePyramid, pyramid
from assay.data.inputs.patches import Canvas, PatchConfig, cell_corners
from assay.errors import BundleError, ImageError
from assay.metrics.decide import Decision
from assay.nn.export import write_graph
from assay.typed import from_json

SIZES = PatchConfig(image_px=64, overview_px=16, patch_px=16, clahe_clip=0.0)
GRID, K = 4, 3
CLASSES = ["low", "middle", "high"]
DECISION = Decision(
    temperature=2.0,
    coverage=0.9,
    quantile=0.66,
    costs=None,
    positive=None,
    threshold=None,
    num=100,
    num_groups=50,
)
SECRET = "/home/someone/secret"


def write_graphs(folder: Path) -> None:
    """By hand: scores are the first channel's means of a cell, logits the means of each channel.

    The overview is 16 pixels for 4 cells a side, so a 4x4 average pool gives the grid.
    """
    cells = {"kernel_shape": [4, 4], "strides": [4, 4]}
    scorer = helper.make_graph(
        [
            helper.make_node("Slice", ["overview", "zero", "one", "axis"], ["first"]),
            helper.make_node("AveragePool", ["first"], ["pooled"], **cells),
            helper.make_node("Flatten", ["pooled"], ["scores"]),
        ],
        "scorer",
        [helper.make_tensor_value_info("overview", TensorProto.FLOAT, ["b", 3, 16, 16])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["b", GRID**2])],
        [
            numpy_helper.from_array(np.array([value], np.int64), name)
            for name, value in (("zero", 0), ("one", 1), ("axis", 1))
        ],
    )
    classify = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["patches", "all"], ["logits"], keepdims=0),
            helper.make_node("ReduceMean", ["patches", "inner"], ["means"], keepdims=0),
            helper.make_node("Softmax", ["means"], ["attn"], axis=-1),
        ],
        "classify",
        [helper.make_tensor_value_info("patches", TensorProto.FLOAT, ["b", K, 3, 16, 16])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 3]),
            helper.make_tensor_value_info("attn", TensorProto.FLOAT, ["b", K]),
        ],
        [
            numpy_helper.from_array(np.array([1, 3, 4], np.int64), "all"),
            numpy_helper.from_array(np.array([2, 3, 4], np.int64), "inner"),
        ],
    )
    for name, graph in (("scorer", scorer), ("classify", classify)):
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        model.graph.node[0].metadata_props.add(key="trace", value=SECRET)
        onnx.save(model, folder / f"{name}.onnx")


def draw(path: Path, seed: int) -> Path:
    """A bright disc on noise, not square."""
    pixels = np.random.default_rng(seed).integers(0, 90, (96, 128, 3), dtype=np.uint8)
    cv2.circle(pixels, (40 + 10 * seed, 50), 25, (30, 60, 250), -1)
    assert cv2.imwrite(str(path), pixels)
    return path


def card_of(select: str = "dps") -> dict:
    graphs = ["classify", "scorer"] if select == "dps" else ["classify"]
    pipeline = {
        "kind": "patches",
        "select": select,
        "k": K,
        "draws": 2 * K,
        "apart": 1,
        "grid": GRID,
        "graphs": graphs,
        "patches": {"image_px": 64, "overview_px": 16, "patch_px": 16, "clahe_clip": 0.0},
    }
    return {"classes": CLASSES, "pipeline": pipeline, "decision": DECISION.to_dict()}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    return [draw(folder / f"{seed}.png", seed) for seed in range(3)]


@pytest.fixture(scope="module")
def sealed(tmp_path_factory, images) -> Path:
    folder = tmp_path_factory.mktemp("sealed")
    write_graphs(folder)
    seal(folder, from_json(Card, card_of()), images[0])
    return folder


@pytest.fixture
def folder(sealed, tmp_path) -> Path:
    """A copy to change."""
    shutil.copytree(sealed, tmp_path / "bundle")
    return tmp_path / "bundle"


def edit(folder: Path, **fields: object) -> None:
    card = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(card | fields))


def test_an_answer_is_what_its_parts_say(sealed, images):
    """Normalised by the image's own statistics, the k best cells, softmax at the temperature."""
    opened = Bundle(sealed)
    for image in images:
        answer = opened.predict(image)
        assert opened.predict(image.read_bytes()).probs == answer.probs
        canvas = Canvas(ImagePyramid.of(cv2.imread(str(image))[..., ::-1]), SIZES)
        overview, mean, std = canvas.overview()
        cells = overview[..., 0].reshape(GRID, 4, GRID, 4).mean((1, 3)).ravel()
        best = np.sort(np.argsort(-cells, kind="stable")[:K])
        corners = cell_corners(best, GRID, SIZES)
        patches = (canvas.patches(corners) / 255 - mean) / (std + 1e-6)
        logits = patches.mean((0, 1, 2)) / 2
        probs = np.exp(logits) / np.exp(logits).sum()
        assert [answer.probs[name] for name in CLASSES] == pytest.approx(probs, abs=1e-4)
        assert answer.label == CLASSES[int(probs.argmax())]
        inside = tuple(name for name, p in zip(CLASSES, probs, strict=True) if p >= 0.34)
        assert answer.set == inside
        assert answer.rejected == (len(inside) != 1)
        assert np.allclose(answer.boxes, canvas.source_boxes(corners))
        weights = np.exp(patches.mean((1, 2, 3)))
        assert np.allclose(answer.attn, weights / weights.sum(), atol=1e-4)


def test_label_and_set_follow_the_decision_and_probabilities_do_not(folder, images):
    opened = Bundle(folder)
    plain = opened.predict(images[0])
    ranked = sorted(CLASSES, key=plain.probs.__getitem__)
    least = CLASSES.index(ranked[0])
    price = [[0.0 if answer == truth else 1.0 for answer in range(3)] for truth in range(3)]
    price[least] = [100.0, 100.0, 100.0]
    price[least][least] = 0.0
    for rule, label in (
        ({"positive": least, "threshold": plain.probs[ranked[0]] - 1e-6}, ranked[0]),
        ({"positive": least, "threshold": plain.probs[ranked[0]] + 1e-6}, ranked[2]),
        ({"costs": price}, ranked[0]),
    ):
        decision = dataclasses.replace(DECISION, **rule)
        edit(folder, decision=decision.to_dict())
        answer = Bundle(folder).predict(images[0])
        assert (answer.label, answer.probs) == (label, plain.probs)
    held = {"every class": 1.0, "the likeliest": 1 - plain.probs[ranked[2]] + 1e-6, "no other": 0.0}
    for (name, quantile), expected in zip(held.items(), (3, 1, 1), strict=True):
        edit(folder, decision=dataclasses.replace(DECISION, quantile=quantile).to_dict())
        answer = Bundle(folder).predict(images[0])
        assert len(answer.set) == expected, name
        assert answer.rejected == (expected != 1)
        assert answer.label == ranked[2]


def test_random_patches_are_the_same_for_the_same_image(tmp_path, images):
    write_graphs(tmp_path)
    (tmp_path / "scorer.onnx").unlink()
    opened = seal(tmp_path, from_json(Card, card_of("random")), images[0])
    first, second, other = (opened.predict(images[i]) for i in (1, 1, 2))
    assert np.array_equal(first.boxes, second.boxes)
    assert not np.array_equal(first.boxes, other.boxes)
    canvas = Canvas(ImagePyramid.of(cv2.imread(str(images[1]))[..., ::-1]), SIZES)
    everywhere = cell_corners(np.arange(GRID**2), GRID, SIZES)
    allowed = {tuple(box) for box in canvas.source_boxes(everywhere)}
    assert {tuple(box) for box in first.boxes} <= allowed


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


def test_sealed_graphs_keep_their_answers_and_no_trace_of_their_machine(sealed, tmp_path):
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


def test_a_newer_schema_is_refused_before_anything_else(folder):
    edit(folder, schema=5, sha256="unknown to this version")
    with pytest.raises(BundleError, match="has schema 5, this Assay knows 4; update Assay"):
        Bundle(folder)


def test_a_bundle_from_before_decisions_is_refused(folder):
    edit(folder, schema=1, temperature=2.0)
    with pytest.raises(BundleError, match="schema 1, this Assay knows 4; export the bundle again"):
        Bundle(folder)


@pytest.mark.parametrize("wrong", [0.01, float("nan")])
def test_a_golden_output_that_is_not_repeated_is_refused(folder, wrong):
    golden = json.loads((folder / "bundle.json").read_text())["golden"]
    golden["probs"]["low"] += wrong
    edit(folder, golden=golden)
    with pytest.raises(BundleError, match="does not repeat its golden output"):
        Bundle(folder)
    Bundle(folder, verify=False)


def test_a_golden_output_within_the_tolerance_is_repeated(folder):
    golden = json.loads((folder / "bundle.json").read_text())["golden"]
    golden["probs"]["low"] += 5e-4
    edit(folder, golden=golden)
    assert Bundle(folder).classes == CLASSES


def test_a_damaged_card_names_the_file_and_the_field(folder):
    edit(folder, golden={"image": "golden.png", "probs": {"a": "sure"}})
    message = r"bundle\.json: field 'golden\.probs\.a' is 'sure'; it must be a number"
    with pytest.raises(BundleError, match=message):
        Bundle(folder)


def test_an_unknown_pipeline_is_refused_by_name(folder):
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


# Graphs that call themselves int8


def image_card(**pipeline: object) -> dict:
    """Of a graph that looks at the whole image in its frame."""
    frame = {"height_px": 16, "width_px": 16}
    shown = {"kind": "image", "image": frame, "graphs": ["classify"], **pipeline}
    return {"classes": CLASSES, "pipeline": shown, "decision": DECISION.to_dict()}


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 3), nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(*layers, nn.Flatten()).eval()


def write_classify(folder: Path, net: nn.Module) -> Path:
    write_graph(folder / "classify.onnx", net, net, ("image", (3, 16, 16)), ["logits"])
    return folder / "classify.onnx"


class Noise(CalibrationDataReader):
    """A few inputs to set the ranges of a quantizer by."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.feeds = iter([{"image": rng.normal(size=(1, 3, 16, 16)).astype(np.float32)}] * 3)

    def get_next(self) -> dict | None:
        return next(self.feeds, None)


def quantize(path: Path, **options: object) -> Path:
    made = path.with_name("quantized.onnx")
    logging.disable(logging.WARNING)  # it recommends a step that this small graph has no use for
    try:
        quantize_static(path, made, Noise(), **options)
    finally:
        logging.disable(logging.NOTSET)
    return made.replace(path)


def test_a_float_graph_that_calls_itself_int8_is_refused(tmp_path, images):
    write_classify(tmp_path, convolutions())
    refused = r"classify calls itself int8, but 0\.0% of the weights .* at least 50% must be"
    with pytest.raises(BundleError, match=refused):
        seal(tmp_path, from_json(Card, image_card(int8=["classify"])), images[0])
    assert not (tmp_path / "bundle.json").exists()
    seal(tmp_path, from_json(Card, image_card()), images[0])  # it does not call itself int8


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
def test_a_quantizer_that_quantizes_nothing_is_found_out(tmp_path, images):
    """Torch's dynamic quantization knows linear layers, and says nothing of the others."""
    told = {nn.Conv2d, nn.Linear}
    net = torch.ao.quantization.quantize_dynamic(convolutions(), told, dtype=torch.qint8)
    assert quantized_share(write_classify(tmp_path, net)) == 0
    with pytest.raises(BundleError, match="calls itself int8"):
        seal(tmp_path, from_json(Card, image_card(int8=["classify"])), images[0])


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator])
def test_a_quantized_graph_is_sealed(tmp_path, images, form):
    path = quantize(write_classify(tmp_path, convolutions()), quant_format=form)
    assert quantized_share(path) == 1
    opened = seal(tmp_path, from_json(Card, image_card(int8=["classify"])), images[0])
    assert sum(opened.predict(images[1]).probs.values()) == pytest.approx(1)


def test_half_of_the_weights_is_the_least(tmp_path, images):
    """Only the matrix product is quantized: 48 of 48 + 216 elements; biases do not count."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d((1, 2)), nn.Flatten(), nn.Linear(16, 3)
    )
    path = quantize(write_classify(tmp_path, net), op_types_to_quantize=["Gemm", "MatMul"])
    assert quantized_share(path) == pytest.approx(48 / (48 + 216))
    with pytest.raises(BundleError, match=r"but 18\.2% of the weights"):
        seal(tmp_path, from_json(Card, image_card(int8=["classify"])), images[0])


def test_weights_are_found_behind_other_nodes_and_in_functions(tmp_path):
    """60 int8 elements in a Constant node and 20 float ones in a function of the model."""
    stored = numpy_helper.from_array(np.ones((6, 10), np.int8), "stored")
    weight = numpy_helper.from_array(np.ones((10, 2), np.float32))
    nodes = [
        helper.make_node("Constant", [], ["w"], value=weight),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    opset = helper.make_opsetid("", 18)
    inner = helper.make_function("here", "Last", ["x"], ["y"], nodes, [opset])
    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], ["stored"], value=stored),
            helper.make_node("DequantizeLinear", ["stored", "scale"], ["float"]),
            helper.make_node("Reshape", ["float", "shape"], ["weight"]),
            helper.make_node("Add", ["x", "shift"], ["moved"]),  # not a weight
            helper.make_node("MatMul", ["moved", "weight"], ["middle"]),
            helper.make_node("Last", ["middle"], ["y"], domain="here"),
        ],
        "products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 2])],
        [
            numpy_helper.from_array(np.float32(0.1), "scale"),
            numpy_helper.from_array(np.array([6, 10], np.int64), "shape"),
            numpy_helper.from_array(np.ones((1, 6), np.float32), "shift"),
        ],
    )
    opsets = [opset, helper.make_opsetid("here", 1)]
    model = helper.make_model(graph, functions=[inner], opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, tmp_path / "products.onnx")
    assert quantized_share(tmp_path / "products.onnx") == 60 / 80


def test_weights_that_are_rounded_only_on_the_way_are_no_8_bit_weights(tmp_path):
    options = {"AddQDQPairToWeight": True}
    path = quantize(write_classify(tmp_path, convolutions()), extra_options=options)
    assert quantized_share(path) == 0


@pytest.mark.parametrize("select", ["dps", "random"])
def test_several_images_are_answered_as_each_alone_and_a_bad_one_harms_none(
    tmp_path, images, select
):
    write_graphs(tmp_path)
    if select == "random":
        (tmp_path / "scorer.onnx").unlink()
    opened = seal(tmp_path, from_json(Card, card_of(select)), images[0])
    bad = images[0].read_bytes()[:-40]
    *answers, none = opened.predict_each([*images, bad])
    assert isinstance(none, ImageError)
    assert opened.predict_each([bad])[0].args == none.args
    for image, together in zip(images, answers, strict=True):
        alone = opened.predict(image)
        assert together.probs == pytest.approx(alone.probs, abs=1e-6)
        assert np.array_equal(together.boxes, alone.boxes)
        assert np.allclose(together.attn, alone.attn, atol=1e-6)


def test_a_tile_that_is_found_damaged_late_is_its_own_images_error(tmp_path, images):
    """Tiles are decoded when patches are cut, after the images of a batch were opened."""
    write_graphs(tmp_path)
    card = card_of()
    card["pipeline"]["patches"]["image_px"] = 512
    opened = seal(tmp_path, from_json(Card, card), images[0])
    pixels = np.random.default_rng(0).integers(0, 255, (512, 512, 3), dtype=np.uint8)
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as out:
        for number, level in enumerate(pyramid(pixels)):
            options = {"compression": "zlib", "subfiletype": min(number, 1)}
            out.write(level, tile=(32, 32), photometric="rgb", **options)
    content = file.getvalue()
    (answer,) = opened.predict_each([content])
    assert np.array_equal(answer.boxes, opened.predict_each([ImagePyramid.of(pixels)])[0].boxes)
    assert answer.probs == opened.predict_each([ImagePyramid.of(pixels)])[0].probs
    damaged, opening = bytearray(content), ImagePyramid.read(content).levels[0]
    for tile in set(range(256)) - set(opening.tiles):
        start, num = opening.segments.offsets[tile], opening.segments.counts[tile]
        damaged[start : start + num] = b"\xff" * num
    assert isinstance(opened.read(bytes(damaged)), ImagePyramid)
    first, none, last = opened.predict_each([content, bytes(damaged), images[1]])
    assert isinstance(none, ImageError)
    assert first.probs == answer.probs
    assert last.probs == pytest.approx(opened.predict(images[1]).probs, abs=1e-6)
    with pytest.raises(ImageError, match="cannot be read"):
        opened.predict(bytes(damaged))


def test_the_page_that_was_learnt_from_ships_with_the_bundle(sealed, images, tmp_path):
    pages = [cv2.imread(str(image)) for image in images[:2]]
    with tifffile.TiffWriter(tmp_path / "stack.tif") as out:
        for page in pages:
            out.write(page[..., ::-1], photometric="rgb", metadata=None)
    (refused,) = Bundle(sealed).predict_each([tmp_path / "stack.tif"])
    assert isinstance(refused, ImageError)
    assert "2 pages" in str(refused)
    write_graphs(tmp_path)
    opened = seal(tmp_path, from_json(Card, card_of() | {"page": 1}), tmp_path / "stack.tif")
    (chosen,) = opened.predict_each([tmp_path / "stack.tif"])
    assert chosen.probs == opened.predict_each([ImagePyramid.of(pages[1][..., ::-1])])[0].probs


def test_views_of_one_part_are_judged_by_their_mean_logits_and_its_set_holds_theirs(sealed, images):
    opened = Bundle(sealed)
    views = [opened.predict(image) for image in images]
    verdict = opened.together(views)
    logits = np.mean([view.logits for view in views], axis=0) / DECISION.temperature
    probs = np.exp(logits) / np.exp(logits).sum()
    assert list(verdict.probs.values()) == pytest.approx(probs)
    assert verdict.label == CLASSES[int(probs.argmax())]
    assert set(verdict.set) == {name for view in views for name in view.set} | {verdict.label}
    assert verdict.rejected == (len(verdict.set) > 1)
    assert vars(opened.together(views[:1])).items() <= vars(views[0]).items()


def test_images_of_more_bits_are_read_by_the_white_level_of_the_data(tmp_path, images):
    """The same picture in 8, 12 and 16 bits is one input; what is of another level is refused."""
    narrow = cv2.imread(str(images[1]))
    for bits, step in ((12, 16), (16, 257)):
        assert cv2.imwrite(str(tmp_path / f"{bits}.png"), narrow.astype(np.uint16) * step)
    opened = {}
    for name, white in (("none", None), ("twelve", {"value": 255.0 * 16})):
        folder = tmp_path / name
        folder.mkdir()
        write_graphs(folder)
        card = from_json(Card, card_of() | {"white": white})
        golden = images[0] if white is None else tmp_path / "12.png"
        seal(folder, card, golden)
        opened[name] = Bundle(folder)
    expected = opened["none"].predict(images[1]).probs
    assert opened["twelve"].predict(images[1]).probs == expected
    assert opened["twelve"].predict(tmp_path / "12.png").probs == pytest.approx(expected, abs=1e-5)
    assert opened["none"].predict(tmp_path / "16.png").probs == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ImageError, match=r"12\.png.*no white level is known"):
        opened["none"].predict(tmp_path / "12.png")
    with pytest.raises(ImageError, match=r"16\.png.*the white level of the data is 4080"):
        opened["twelve"].predict(tmp_path / "16.png")
