"""Which of timm's models work as a backbone of patches: one small member of each of its modules, and the source's.

python tests/benchmarks/backbones.py STORAGE [--export]

Each is built at the size that it was published for, run, its width compared with the one that is said, and frozen up to
its last block; where it can be, without memory for weights (meta device). With --export the small ones are also taught one step,
exported, and answered by ONNX Runtime as by torch; that takes an hour or two. Each model has a process of its own, so that one
that crashes is a row too; STORAGE keeps the rows, and a second start goes on where the first one ended.
"""

import argparse
import json
import logging
import multiprocessing
import signal
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import timm
import torch
from bench import table, write
from torch import nn

from assay.errors import ConfigError
from assay.nn.backbone import NAMES, create_backbone, feature_width
from assay.nn.export import write_graph

SMALL = [
    "beit_base_patch16_224",
    "cait_xxs24_224",
    "coat_tiny",
    "convit_tiny",
    "convmixer_768_32",
    "cpubone_nano",
    "crossvit_tiny_240",
    "cs3darknet_focus_s",
    "csatv2",
    "cspnext_tiny",
    "davit_tiny",
    "deepseek_vit_412m",
    "deit_tiny_patch16_224",
    "densenet121",
    "dla46x_c",
    "dpn48b",
    "edgenext_xx_small",
    "efficientformer_l1",
    "efficientformerv2_s0",
    "efficientvim_m1",
    "efficientvit_b0",
    "efficientvit_m0",
    "ese_vovnet19b_slim_dw",
    "fasternet_t0",
    "fastvit_t8",
    "focalnet_tiny_srf",
    "gcvit_xxtiny",
    "gemma4_vit_167m",
    "ghostnet_050",
    "gmlp_ti16_224",
    "halonet_h1",
    "hardcorenas_b",
    "hgnetv2_b0",
    "hiera_tiny_224",
    "hrnet_w18_small",
    "iformer_t",
    "inception_next_atto",
    "inception_resnet_v2",
    "inception_v3",
    "inception_v4",
    "lcnet_035",
    "lcnetv2_small",
    "legacy_seresnet18",
    "legacy_xception",
    "levit_128s",
    "lowformer_b0",
    "mobilenetv5_base",
    "mobilevit_xxs",
    "mvitv2_tiny",
    "naflexvit_base_patch16_parfac_gap",
    "nasnetalarge",
    "nest_tiny",
    "nextvit_small",
    "pit_ti_224",
    "pnasnet5large",
    "poolformerv2_s12",
    "pvt_v2_b0",
    "qwen3_vit_88m",
    "rdnet_tiny",
    "regnetx_002",
    "repghostnet_050",
    "repvit_m1",
    "res2next50",
    "resnest14d",
    "resnetv2_18",
    "rexnet_100",
    "sam2_hiera_tiny",
    "samvit_base_patch16_224",
    "selecsls42",
    "sequencer2d_s",
    "shvit_s1",
    "skresnet18",
    "starnet_s050",
    "swiftformer_xs",
    "swin_tiny_patch4_window7_224",
    "swinv2_cr_tiny_224",
    "swinv2_tiny_window8_256",
    "test_byobnet",
    "test_coatnet",
    "test_convnext",
    "test_efficientnet",
    "test_mambaout",
    "test_nfnet",
    "test_resnet",
    "test_vit",
    "test_vit_relpos",
    "tiny_vit_5m_224",
    "tnt_s_legacy_patch16_224",
    "tresnet_m",
    "twins_svt_small",
    "vgg11",
    "visformer_tiny",
    "vit_tiny_patch16_dinov3_qkvb",
    "vit_tiny_r_s16_p8_224",
    "vitamin_small_224",
    "volo_d1_224",
    "xception41p",
    "xcit_nano_12_p8_224",
]
"""The member with fewest parameters of each of timm's modules, as `torch.device("meta")` counts them."""

SECONDS = 900
"""For each model."""
TOLERANCE = 1e-3
"""Of the largest value, or four times what torch in 32 bits itself differs from 64, where that is more."""


def try_model(name: str, exports: bool) -> dict[str, str]:
    """What works of one model; the first thing that does not says why."""
    side = side_of(name)
    row = {"model": name, "parameters": "", "width": "", "patch": str(side), "fails": ""}
    reached = ["build"]
    signal.alarm(SECONDS)
    try:
        check(name, side, row, reached)
        if exports:
            check_export(name, side, reached)
    except (
        ConfigError,
        Exception,
    ) as error:  # whatever a third party's model raises is a row of the table
        text = (str(error).strip().splitlines() or [""])[0][:160]
        row["fails"] = f"{reached[0]}: {type(error).__name__} {text}".replace("|", "/")
    finally:
        signal.alarm(0)
    return row


def keep_row(path: Path, name: str, exports: bool) -> None:
    """Try a model in this process, which `row_of` began for it alone."""
    signal.signal(signal.SIGALRM, out_of_time)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    path.write_text(json.dumps(try_model(name, exports)))


def row_of(name: str, exports: bool, storage: Path) -> dict[str, str]:
    """The kept row of a model, tried now where there is none; a process that dies is said as what fails."""
    path = storage / f"{name}{'-export' if exports else ''}.json"
    if not path.exists():
        process = multiprocessing.get_context("fork").Process(
            target=keep_row, args=(path, name, exports)
        )
        process.start()
        process.join()
        if process.exitcode:
            dead = {"model": name, "parameters": "", "width": "", "patch": str(side_of(name))}
            path.write_text(json.dumps(dead | {"fails": f"process ended by {process.exitcode}"}))
    row: dict[str, str] = json.loads(path.read_text())
    return row


def side_of(name: str) -> int:
    """The side of patches that a model was published for."""
    config = timm.models.get_pretrained_cfg(name)
    return 224 if config is None else config.input_size[1]


def check(name: str, side: int, row: dict[str, str], reached: list[str]) -> None:
    """Build, run, compare the width, freeze."""
    with torch.device("meta"):
        net = create_backbone(name, img_size=side).eval()
        frozen = create_backbone(name, img_size=side, trainable_blocks=1)
    row["parameters"] = f"{sum(p.numel() for p in net.parameters()) / 1e6:.1f} M"
    reached[0] = "width"
    width = feature_width(net)
    row["width"] = f"{width}" + (f" (not {net.num_features})" if width != net.num_features else "")
    try:
        with torch.device("meta"):
            features = net(torch.zeros(1, 3, side, side))
    except (RuntimeError, AssertionError):  # what looks at values cannot do without
        with torch.no_grad():
            features = create_backbone(name, img_size=side).eval()(torch.zeros(1, 3, side, side))
    assert features.shape == (1, width), f"gives {tuple(features.shape)}"
    reached[0] = "freeze"
    check_frozen(frozen)


def check_export(name: str, side: int, reached: list[str]) -> None:
    """Teach one step, export, answer."""
    torch.manual_seed(0)
    net = create_backbone(name, img_size=side)
    reached[0] = "train"
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    net.train()(images).square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters()), "gradient"
    reached[0] = "export"
    net.eval()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "net.onnx"
        write_graph(path, net, net, ("patches", (3, side, side)), ["features"])
        reached[0] = "answer"
        [answer] = onnxruntime.InferenceSession(path).run(None, {"patches": images.numpy()})
        expected = net(images).numpy()
    largest = np.abs(expected).max()
    gap = np.abs(answer - expected).max() / largest
    if gap >= TOLERANCE:
        exact = net.double()(images.double()).detach().numpy()
        rounding = np.abs(expected - exact).max() / largest
        gap = np.abs(answer - exact).max() / largest
        assert gap < 4 * rounding, (
            f"the graph differs by {gap:.2g} of the largest value, torch by {rounding:.2g}"
        )


def check_frozen(net: nn.Module) -> None:
    """Part of it is trained, and not all."""
    total = sum(p.numel() for p in net.parameters())
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    assert 0 < trained < total, f"{trained} of {total} parameters would be trained"


def out_of_time(*_: object) -> None:
    """End a model that takes too long."""
    raise TimeoutError(f"more than {SECONDS} s")


def main() -> None:
    """Try all, print each, write the table of those that do not work and of the source's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("storage", type=Path)
    parser.add_argument("--export", action="store_true")
    options = parser.parse_args()
    exports, storage = options.export, options.storage
    storage.mkdir(parents=True, exist_ok=True)
    source = [*dict.fromkeys(NAMES.values())]
    rows = []
    for name in [*SMALL, *source]:
        rows.append(row_of(name, exports and name in SMALL, storage))
        print(list(rows[-1].values()), flush=True)
    small, large = rows[: len(SMALL)], rows[len(SMALL) :]
    header = list(rows[0])
    works = [row["model"] for row in small if not row["fails"]]
    failing = [list(row.values()) for row in small if row["fails"]]
    others = [row["model"] for row in small if "not" in row["width"]]
    write(
        __file__,
        f"Of one small member of each of timm's {len(small)} modules {len(works)} are built, run, as wide as is said and frozen up to the last block"
        f"{', taught, exported and answered alike' if exports else ' (not exported in this run)'}; "
        f"{len(others)} of them are wider than their `num_features`: {', '.join(others)}.",
        *(["The others:", table(header, failing)] if failing else []),
        "What the fingerprint reference and torchvision name, by timm's names:",
        table(header, [list(row.values()) for row in large]),
    )


if __name__ == "__main__":
    main()
