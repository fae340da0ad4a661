"""A bundle answers as its card says, of one image, of several and of the views of a part."""

import dataclasses
import io

import cv2
import numpy as np
import pytest
import tifffile

from assay.bundle.bundle import Bundle
from assay.bundle.card import Card
from assay.bundle.seal import seal
from assay.data.images.pyramid import ImagePyramid, pyramid
from assay.data.inputs.patches import Canvas, PatchConfig, cell_corners
from assay.errors import ImageError
from assay.typed import from_json

SIZES = PatchConfig(image_px=64, overview_px=16, patch_px=16, clahe_clip=0.0)
GRID, K = 4, 3
CLASSES = ["low", "middle", "high"]


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


def test_label_and_set_follow_the_decision_and_probabilities_do_not(folder, images, deciding, edit):
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
        decision = dataclasses.replace(deciding, **rule)
        edit(folder, decision=dataclasses.asdict(decision))
        answer = Bundle(folder).predict(images[0])
        assert (answer.label, answer.probs) == (label, plain.probs)
    held = {"every class": 1.0, "the likeliest": 1 - plain.probs[ranked[2]] + 1e-6, "no other": 0.0}
    for (name, quantile), expected in zip(held.items(), (3, 1, 1), strict=True):
        edit(folder, decision=dataclasses.asdict(dataclasses.replace(deciding, quantile=quantile)))
        answer = Bundle(folder).predict(images[0])
        assert len(answer.set) == expected, name
        assert answer.rejected == (expected != 1)
        assert answer.label == ranked[2]


def test_random_patches_are_the_same_for_the_same_image(tmp_path, images, write_graphs, card_of):
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


@pytest.mark.parametrize("select", ["dps", "random"])
def test_several_images_are_answered_as_each_alone_and_a_bad_one_harms_none(
    tmp_path, images, select, write_graphs, card_of
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


def test_a_tile_that_is_found_damaged_late_is_its_own_images_error(
    tmp_path, images, write_graphs, card_of
):
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


def test_the_page_that_was_learnt_from_ships_with_the_bundle(
    sealed, images, tmp_path, write_graphs, card_of
):
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


def test_views_of_one_part_are_judged_by_their_mean_logits_and_its_set_holds_theirs(
    sealed, images, deciding
):
    opened = Bundle(sealed)
    views = [opened.predict(image) for image in images]
    verdict = opened.together(views)
    logits = np.mean([view.logits for view in views], axis=0) / deciding.temperature
    probs = np.exp(logits) / np.exp(logits).sum()
    assert list(verdict.probs.values()) == pytest.approx(probs)
    assert verdict.label == CLASSES[int(probs.argmax())]
    assert set(verdict.set) == {name for view in views for name in view.set} | {verdict.label}
    assert verdict.rejected == (len(verdict.set) > 1)
    assert vars(opened.together(views[:1])).items() <= vars(views[0]).items()


def test_images_of_more_bits_are_read_by_the_white_level_of_the_data(
    tmp_path, images, write_graphs, card_of
):
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
