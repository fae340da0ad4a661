"""From a run's folder, a bundle's or an URI to answers in three lines; what is not what was meant is refused."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from assay.bundle import load as module
from assay.bundle.bundle import Bundle
from assay.bundle.load import load
from assay.errors import BundleError, ConfigError


@pytest.fixture(scope="module")
def part(tmp_path_factory) -> Path:
    """A blue spot on grey noise: the third class, whose channel rises highest above its mean."""
    path = tmp_path_factory.mktemp("parts") / "part.png"
    pixels = np.random.default_rng(0).integers(0, 60, (40, 40, 3), np.uint8)
    pixels[18:22, 18:22, 0] = 255
    assert cv2.imwrite(str(path), pixels)
    return path


@pytest.fixture(scope="module")
def sealed(tmp_path_factory, make_bundle) -> Path:
    """A run's folder with its bundle."""
    run = tmp_path_factory.mktemp("parts-3f2a")
    make_bundle(run / "bundle")
    return run


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(module, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def sha256_of_card(run: Path) -> str:
    return hashlib.sha256((run / "bundle" / "bundle.json").read_bytes()).hexdigest()


def test_a_run_answers_in_three_lines_without_torch(sealed, part):
    lines = f"""
from assay.bundle.load import load
casting = load({str(sealed)!r})
answer = casting.predict({str(part)!r})
import sys
assert not {{"torch", "ray", "pyarrow"}} & set(sys.modules)
print(answer.label, answer.probs)
"""
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    expected = Bundle(sealed / "bundle").predict(part)
    assert done.stdout == f"m3 {expected.probs}\n"


def test_a_run_a_bundle_and_a_copy_of_it_answer_alike(sealed, part, cache):
    sha256 = sha256_of_card(sealed)
    places = (sealed, sealed / "bundle", str(sealed), (sealed / "bundle").as_uri() + "/")
    answers = [load(place, key).predict(part).probs for place in places for key in ("", sha256)]
    assert answers == [answers[0]] * 8
    assert [path.name for path in cache.iterdir()] == [sha256]
    assert load("s3://gone/bundle", sha256.upper()).predict(part).probs == answers[0]


@pytest.fixture
def website(sealed, tmp_path, serve_folder):
    """Serve a copy of the bundle by HTTP; return its folder and address."""
    shutil.copytree(sealed / "bundle", tmp_path / "served")
    return tmp_path / "served", serve_folder(tmp_path / "served")


def test_a_bundle_of_the_web_is_copied_once(website, sealed, part):
    folder, address = website
    sha256 = sha256_of_card(sealed)
    expected = load(sealed).predict(part).probs
    assert load(address, sha256).predict(part).probs == expected
    shutil.rmtree(folder)
    assert load(address, sha256).predict(part).probs == expected


def test_another_bundle_than_was_meant_is_refused_and_not_kept(website, sealed, cache):
    folder, address = website
    sha256 = sha256_of_card(sealed)
    for place in (sealed, address, (sealed / "bundle").as_uri()):
        with pytest.raises(
            ConfigError, match=rf"bundle.json has the SHA-256 {sha256} and sha256 asks"
        ):
            load(place, "0" * 64)
    with pytest.raises(ConfigError, match=r"by its SHA-256 only.*; give sha256\."):
        load(address)
    (folder / "classify.onnx").write_bytes(b"another")
    with pytest.raises(ConfigError, match=r"classify.onnx has the SHA-256 .* its bundle.json asks"):
        load(address, sha256)
    (folder / "classify.onnx").unlink()
    with pytest.raises(ConfigError, match=r"classify.onnx cannot be fetched"):
        load(address, sha256)
    assert list(cache.iterdir()) == []


def test_a_copy_that_was_changed_is_refused(sealed, cache):
    load((sealed / "bundle").as_uri())
    sha256 = sha256_of_card(sealed)
    (cache / sha256 / "classify.onnx").write_bytes(b"another")
    with pytest.raises(BundleError, match=r"classify.onnx is missing or was changed"):
        load((sealed / "bundle").as_uri(), sha256)
    (cache / sha256 / "bundle.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"bundle.json has the SHA-256"):
        load((sealed / "bundle").as_uri(), sha256)


def test_a_folder_without_a_bundle_is_said(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(BundleError, match="holds no bundle; give the folder of a run"):
            load(path)
