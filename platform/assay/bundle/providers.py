"""What runs a bundle's graphs: a GPU or OpenVINO by another build of onnxruntime, else the CPU.

Each build is a package of the same files, and one whose libraries are missing computes on the CPU
without a word; here it is refused where it was asked for, and told where it was not.
"""

import logging
import sys
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

import onnxruntime

from assay.errors import BundleError, ConfigError

logger = logging.getLogger(__name__)

Provider: TypeAlias = Literal["auto", "cuda", "openvino", "cpu"]

PROVIDERS = {
    "cuda": "CUDAExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
"""What onnxruntime calls them; auto takes the first that it has."""

OPTIONS = {"CUDAExecutionProvider": {"use_tf32": "0"}}
"""A golden output is of one arithmetic; CUDA would round what it multiplies to 10 bits (TF32)."""

PACKAGES = {
    "cuda": "onnxruntime-gpu==1.31.1",
    "openvino": "onnxruntime-openvino==1.24.1",
    "cpu": "onnxruntime==1.31.1",
}
"""The builds that have them."""


def open_session(path: Path, options: Any, provider: Provider) -> Any:
    """Open a graph on what is asked for.

    Raises:
        BundleError: this onnxruntime lacks it, or cannot load it.
    """
    names = _names(provider)
    _load_libraries()
    with redirect_stdout(sys.stderr):  # where it falls back it says so by print
        session = onnxruntime.InferenceSession(
            path, options, providers=[(name, OPTIONS.get(name, {})) for name in names]
        )
    taken = session.get_providers()[0]
    if provider == "auto":
        _tell(taken, tuple(names))
    elif taken != names[0]:
        raise BundleError(
            f"The provider {provider} is asked for and this onnxruntime could not load it, so that {taken} would run the graphs; its messages name what is missing (a driver, CUDA, cuDNN): install that, or {_WITHOUT}."
        )
    else:
        session.disable_fallback()  # which answers by the CPU after a fault of the device
    return session


def refuse_idle_gpus(gpus: float, provider: Provider) -> None:
    """Refuse GPUs beside a provider that uses none.

    Raises:
        ConfigError: as it says.
    """
    if gpus and provider not in ("auto", "cuda"):
        raise ConfigError(
            f"app.gpus is {gpus:g} and app.provider {provider}, so that nothing would use a GPU; give --app.provider cuda, or --app.gpus 0."
        )


def provider_with(gpus: float, provider: Provider) -> Provider:
    """Return what has to run the graphs beside so many GPUs: where there are any, cuda and nothing less.

    Raises:
        ConfigError: GPUs are reserved beside a provider that uses none.
        BundleError: this onnxruntime lacks what has to.
    """
    refuse_idle_gpus(gpus, provider)
    chosen: Provider = "cuda" if gpus else provider
    _names(chosen)
    return chosen


_WITHOUT = "leave the provider to auto and reserve no GPU (--app.gpus 0)"


def _names(provider: Provider) -> list[str]:
    """List what onnxruntime tries in turn.

    Raises:
        BundleError: it lacks the one that is asked for.
    """
    present = onnxruntime.get_available_providers()
    if provider != "auto" and PROVIDERS[provider] not in present:
        raise BundleError(
            f"The provider {provider} is asked for, and this onnxruntime has {', '.join(present)}; give `pip install --force-reinstall --no-deps {PACKAGES[provider]}` on each node (with uv: cluster/accelerator.md), or {_WITHOUT}."
        )
    wanted = PROVIDERS if provider == "auto" else dict.fromkeys((provider, "cpu"))
    return [PROVIDERS[name] for name in wanted if PROVIDERS[name] in present]


@cache
def _load_libraries() -> None:
    """Load CUDA's libraries from the packages that torch brings along, which no path of the system names."""
    if hasattr(onnxruntime, "preload_dlls"):  # since 1.21
        with redirect_stdout(sys.stderr):
            onnxruntime.preload_dlls()


@cache
def _tell(taken: str, tried: tuple[str, ...]) -> None:
    """Say once what auto took, where there was a choice."""
    if taken != tried[0]:
        logger.warning(
            f"This onnxruntime has {tried[0]} and could not load it: {taken} runs the graphs."
        )
    elif len(tried) > 1:
        logger.info(f"{taken} runs the graphs.")
