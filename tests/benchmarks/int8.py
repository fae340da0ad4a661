"""A U-Net in 8 bits: size, latency and masks, in torch, ONNX Runtime and OpenVINO, side by side.

python tests/benchmarks/int8.py

OpenVINO and NNCF are measured where they are installed (`openvino==2026.4.1`, `nncf==3.4.0`).
"""

import copy
import importlib.util
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import segmentation_models_pytorch as smp
import torch
from bench import table, write
from torch import Tensor, nn

from assay.bundle.latency import time_runs
from assay.bundle.quantize import QuantizeConfig, quantize
from assay.data.synthetic.powder_bed import LayersConfig, draw_layer
from assay.nn.export import write_graph

STEPS, BATCH, CROP, SIZE, TURNS = 400, 4, 96, 512, 15
Answer = Callable[[np.ndarray], np.ndarray]
"""From an image (1 3 h w) to its logits."""


def layers(builds: range, size: int, each: int = 2) -> list[tuple[np.ndarray, np.ndarray]]:
    """Normalised images (3 h w) and true masks (h w)."""
    config = LayersConfig(size_px=size)
    drawn = [draw_layer(config, build, layer) for build in builds for layer in range(each)]
    return [
        (np.repeat((d.pixels[None] / 128 - 1).astype(np.float32), 3, 0), d.truth) for d in drawn
    ]


def crops(
    train: list[tuple[np.ndarray, np.ndarray]], rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """A batch, where three of four crops hold a defect."""
    images: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    while len(images) < BATCH:
        image, mask = train[rng.integers(len(train))]
        y, x = rng.integers(0, mask.shape[0] - CROP, 2)
        cut = np.s_[y : y + CROP, x : x + CROP]
        if mask[cut].any() or len(images) == BATCH - 1:
            images.append(image[:, *cut])
            masks.append(mask[None, *cut])
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(masks)).float()


def trained() -> nn.Module:
    """U-Net with MobileNetV2, from random weights, trained for some minutes."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    net = smp.Unet("mobilenet_v2", encoder_weights=None, in_channels=3, classes=1)
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, STEPS)
    dice, train = smp.losses.DiceLoss("binary"), layers(range(20), 256)
    for _ in range(STEPS):
        image, mask = crops(train, rng)
        logits = net(image)
        bce = nn.functional.binary_cross_entropy_with_logits(logits, mask)
        optimizer.zero_grad()
        (dice(logits, mask) + bce).backward()
        optimizer.step()
        schedule.step()
    return net.eval().requires_grad_(False)


def in_torch(net: nn.Module, layout: torch.memory_format = torch.contiguous_format) -> Answer:
    """The module itself."""
    return lambda image: net(torch.from_numpy(image).contiguous(memory_format=layout)).numpy()


def in_onnxruntime(path: Path) -> Answer:
    """On one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options)
    return lambda image: session.run(None, {"image": image})[0]


def in_openvino(path: Path) -> Answer:
    """On one thread, for latency."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    return lambda image: compiled(image)[0]


def by_nncf(graph: Path, target: Path, feeds: list[dict[str, np.ndarray]]) -> Path:
    """NNCF's quantization of the same graph from the same tiles."""
    import nncf

    options = {"preset": nncf.QuantizationPreset.MIXED, "subset_size": len(feeds)}
    onnx.save(nncf.quantize(onnx.load(graph), nncf.Dataset(feeds), **options), target)
    return target


def seeds_own(net: nn.Module) -> nn.Module:
    """Dynamic quantization as the seed called it."""
    with warnings.catch_warnings(action="ignore"):  # torch.ao is deprecated
        return torch.ao.quantization.quantize_dynamic(
            copy.deepcopy(net), {nn.Conv2d, nn.Linear}, dtype=torch.qint8
        )


def saved(net: nn.Module, path: Path) -> int:
    """Bytes of a module's weights on disk."""
    torch.save(net.state_dict(), path)
    return path.stat().st_size


def iou(found: np.ndarray, truth: np.ndarray) -> float:
    """Overlap of two sets of masks."""
    return float((found & truth).sum() / (found | truth).sum())


def score_on(val: list[tuple[np.ndarray, np.ndarray]]) -> Callable[[Path], float]:
    """IoU of a graph's masks."""
    truth = np.stack([mask for _, mask in val])

    def score(path: Path) -> float:
        answer = in_onnxruntime(path)
        return iou(np.stack([answer(image[None])[0, 0] > 0 for image, _ in val]), truth)

    return score


def compared(net: nn.Module, folder: Path) -> list[str]:
    """Quantize and measure; what to write."""
    graph, int8 = folder / "float.onnx", folder / "int8.onnx"
    write_graph(graph, net, net, ("image", (3, None, None)), ["logits"])
    feeds = [{"image": image[None]} for image, _ in layers(range(20), 256)]
    val, test = layers(range(20, 25), 256), layers(range(25, 30), SIZE)
    began = time.time()
    made = quantize(graph, int8, feeds, score_on(val), QuantizeConfig())
    took = time.time() - began
    dynamic = seeds_own(net)
    layout = torch.channels_last
    last = copy.deepcopy(net).to(memory_format=layout)
    weights = saved(net, folder / "net.pt")
    answers = {
        "torch eager": (in_torch(net), weights),
        "torch channels-last": (in_torch(last, layout), weights),
        "torch dynamic quantization": (in_torch(dynamic), saved(dynamic, folder / "dynamic.pt")),
        "ONNX Runtime fp32": (in_onnxruntime(graph), made.fp32.bytes),
        "ONNX Runtime int8": (in_onnxruntime(int8), made.int8.bytes),
    }
    missing = [name for name in ("openvino", "nncf") if importlib.util.find_spec(name) is None]
    if "openvino" not in missing:
        answers["OpenVINO fp32"] = in_openvino(graph), made.fp32.bytes
        answers["OpenVINO int8"] = in_openvino(int8), made.int8.bytes
    if not missing:
        other = by_nncf(graph, folder / "nncf.onnx", feeds)
        answers["ONNX Runtime, int8 by NNCF"] = in_onnxruntime(other), other.stat().st_size
        answers["OpenVINO, int8 by NNCF"] = in_openvino(other), other.stat().st_size
    converted = [m for m in dynamic.modules() if "quantized" in type(m).__module__]
    first = torch.from_numpy(test[0][0][None])
    same = torch.equal(net(first), dynamic(first))
    worst = ", ".join(f"{name} {db:.0f} dB" for name, db in list(made.sensitivity.items())[:5])
    return [
        measured(answers, test),
        f"The int8 graph: {made.share:.1%} of the weights in 8 bits, layers kept in float: {', '.join(made.float_nodes) or 'none'}; IoU on val {made.fp32.score:.4f} as float, {made.int8.score:.4f} in int8; made in {took:.0f} s from {len(feeds)} tiles, with the sensitivity of {len(made.sensitivity)} nodes, lowest: {worst}.",
        f"torch's dynamic quantization converted {len(converted)} of {sum(isinstance(m, nn.Conv2d) for m in net.modules())} convolutions; outputs {'identical' if same else 'changed'}.",
        f"Not installed, so not measured: {', '.join(missing)}." if missing else "",
    ]


def measured(
    answers: dict[str, tuple[Answer, int]], test: list[tuple[np.ndarray, np.ndarray]]
) -> str:
    """A row for each way to answer."""
    image = test[0][0][None]
    runs = {name: lambda a=answer: a(image) for name, (answer, _) in answers.items()}
    took = time_runs(runs, TURNS)
    truth = np.stack([mask for _, mask in test])
    masks = {
        name: np.stack([answer(one[None])[0, 0] > 0 for one, _ in test])
        for name, (answer, _) in answers.items()
    }
    base = "torch eager"
    rows = []
    for name, (_, size) in answers.items():
        score = iou(masks[name], truth)
        cells = [
            name,
            f"{size / 1e6:.2f}",
            f"{answers[base][1] / size:.2f}x",
            f"{took[name]['p50_ms']:.0f}",
            f"{took[name]['p95_ms']:.0f}",
            f"{took[base]['p50_ms'] / took[name]['p50_ms']:.2f}x",
            f"{iou(masks[name], masks[base]):.4f}",
            f"{score:.4f}",
            f"{score - iou(masks[base], truth):+.4f}",
        ]
        rows.append(cells)
    costs = ["MB", "smaller", "p50 ms", "p95 ms", "faster"]
    return table(["what", *costs, "mask IoU with torch", "IoU", "difference"], rows)


def main() -> None:
    """Train, quantize, measure."""
    net = trained()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        parts = compared(net, Path(folder))
    write(
        __file__,
        f"U-Net with MobileNetV2 ({SIZE}x{SIZE}, batch 1, one thread, {TURNS} turns of all after two to warm up), trained {STEPS} steps on embedded powder-bed layers; IoU over 10 test layers of other builds. Goals: 3.8 times smaller, 2.2 times faster than torch eager, IoU not more than .005 lower.",
        *filter(None, parts),
    )


if __name__ == "__main__":
    main()
