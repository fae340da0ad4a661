"""What runs the graphs is what was asked for, or it is refused or told in a sentence."""

import logging
import tomllib
from pathlib import Path

import onnxruntime
import pytest

from assay.bundle import providers
from assay.bundle.bundle import Bundle
from assay.bundle.providers import PACKAGES, PROVIDERS, provider_with
from assay.errors import BundleError, ConfigError
from assay.serve.config import ApplicationConfig

PYPROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def sealed(tmp_path_factory, make_bundle) -> Path:
    return make_bundle(tmp_path_factory.mktemp("sealed") / "bundle")


class Build:
    """A build of onnxruntime with CUDA: asks of its sessions, and loads CUDA or falls back as the real one does."""

    def __init__(self, monkeypatch, loads: bool) -> None:
        self.asked: list = []
        session, names = onnxruntime.InferenceSession, [PROVIDERS["cuda"], PROVIDERS["cpu"]]

        def open_(path, options, providers):
            print("Falling back to ['CPUExecutionProvider'] and retrying.")
            self.asked.append(providers)
            self.opened = session(path, options, providers=[PROVIDERS["cpu"]])
            if loads:
                self.opened.get_providers = lambda: names
            return self.opened

        monkeypatch.setattr("onnxruntime.get_available_providers", lambda: names)
        monkeypatch.setattr("onnxruntime.InferenceSession", open_)
        monkeypatch.setattr("onnxruntime.preload_dlls", lambda: print("Failed to load libcudnn"))
        providers._load_libraries.cache_clear()
        providers._tell.cache_clear()


def test_cuda_computes_in_whole_float32_and_does_not_fall_back(sealed, monkeypatch):
    build = Build(monkeypatch, loads=True)
    Bundle(sealed, provider="cuda")
    assert build.asked == [[(PROVIDERS["cuda"], {"use_tf32": "0"}), (PROVIDERS["cpu"], {})]]
    assert not build.opened._enable_fallback


def test_cuda_that_cannot_be_loaded_is_refused(sealed, monkeypatch, capsys):
    Build(monkeypatch, loads=False)
    with pytest.raises(BundleError, match=r"cuda is asked for .* CPUExecutionProvider would run"):
        Bundle(sealed, provider="cuda")
    told = capsys.readouterr()
    assert not told.out  # that is for answers
    assert "libcudnn" in told.err


@pytest.mark.parametrize(
    ("loads", "level", "sentence"),
    [
        (False, "WARNING", "has CUDAExecutionProvider and could not load it: CPUExecutionProvider"),
        (True, "INFO", "CUDAExecutionProvider runs the graphs"),
    ],
)
def test_auto_says_once_what_it_took(sealed, monkeypatch, caplog, loads, level, sentence):
    caplog.set_level(logging.INFO)
    Build(monkeypatch, loads)
    for _ in range(2):
        Bundle(sealed)
    (line,) = [each for each in caplog.records if each.name == providers.__name__]
    assert (line.levelname, sentence in line.getMessage()) == (level, True)


def test_a_build_of_the_cpu_says_nothing(sealed, caplog):
    providers._tell.cache_clear()
    Bundle(sealed)
    assert not caplog.records


def test_a_provider_that_is_not_there_is_named(sealed):
    assert Bundle(sealed, provider="cpu", threads=1).card
    for provider in ("cuda", "openvino"):
        words = rf"{provider}.* --force-reinstall --no-deps {PACKAGES[provider]}"
        with pytest.raises(BundleError, match=words):
            Bundle(sealed, provider=provider)


def test_gpus_are_not_reserved_for_what_uses_none(monkeypatch):
    assert [provider_with(0.0, provider) for provider in ("auto", "cpu")] == ["auto", "cpu"]
    with pytest.raises(BundleError, match=r"cuda is asked for.* \(--app.gpus 0\)"):
        provider_with(0.5, "auto")
    for provider in ("cpu", "openvino"):
        with pytest.raises(ConfigError, match=rf"app.gpus is 0.5 and app.provider {provider}"):
            provider_with(0.5, provider)
        with pytest.raises(ConfigError, match=r"give --app.provider cuda, or --app.gpus 0"):
            ApplicationConfig(gpus=0.5, provider=provider)
    Build(monkeypatch, loads=True)
    assert [provider_with(0.5, provider) for provider in ("auto", "cuda")] == ["cuda", "cuda"]


def test_the_builds_that_are_named_are_those_of_the_extras():
    extras = PYPROJECT["project"]["optional-dependencies"]
    assert [PACKAGES["cuda"]] == extras["cuda"]
    assert [PACKAGES["openvino"]] == extras["openvino"]
    assert PACKAGES["cpu"] in PYPROJECT["project"]["dependencies"]
