"""Tiles that fit the image beside squares of one size: the time of a segment answer, and what of it the network takes.

python tests/benchmarks/tile_size.py

The network is that of segment's demo with random weights, which take as long as others.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import onnxruntime
import torch
from bench import photo, table, write

from assay.bundle.segment import Segmenter
from assay.config import to_dict
from assay.data.images.pyramid import ImagePyramid
from assay.data.inputs.tiles import STRIDE_PX, TileConfig
from assay.nn.export import write_graph
from assay.nn.mask_net import MaskNetConfig, create_mask_net

SIZES, TURNS = ((512, 512), (700, 1000), (2048, 2048)), 9
NET = MaskNetConfig(encoder="tu-mobilenetv2_050", decoder_channels=(64, 32, 24, 16, 8))
TILES = TileConfig(tile_px=256, overlap_px=32)


class Timed:
    """A session that adds up its CPU time (s) and what it was shown."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options)
        self.get_outputs = self.session.get_outputs
        self.seconds, self.num_pixels = 0.0, 0

    def run(self, names: list[str], feed: Mapping[str, np.ndarray]) -> list[Any]:
        began = time.process_time()
        outputs: list[Any] = self.session.run(names, feed)
        self.seconds += time.process_time() - began
        self.num_pixels += feed["tiles"].size // 3
        return outputs


def graphs(folder: Path) -> dict[str, Timed]:
    """One network as a graph for tiles of one size, and for any; exported where they are missing."""
    for name, side in (("fixed", TILES.tile_px), ("fit", None)):
        if not (folder / f"{name}.onnx").exists():
            torch.manual_seed(0)
            net = create_mask_net(NET, 1).eval()
            feed = ("tiles", (3, side, side))
            write_graph(folder / f"{name}.onnx", net, net, feed, ["logits"], STRIDE_PX)
    return {name: Timed(folder / f"{name}.onnx") for name in ("fixed", "fit")}


def answerer(size: str, graph: Timed) -> Segmenter:
    card: Any = SimpleNamespace(
        classes=["defect"],
        thresholds=[32],
        pipeline={"tiles": to_dict(TILES) | {"size": size}},
    )
    return Segmenter(card, {"segment": graph})


def cpu_ms(run: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time()
    result = run()
    return 1000 * (time.process_time() - began), result


def steps(segmenter: Segmenter, content: bytes) -> dict[str, float]:
    """CPU time (ms) of the steps of one answer, from an image's bytes to the PNG of its mask."""
    graph = segmenter.graph
    graph.seconds, graph.num_pixels = 0.0, 0
    decoding, pyramid = cpu_ms(lambda: ImagePyramid.read(content))
    answering, (answer,) = cpu_ms(lambda: segmenter.predict([pyramid]))
    form, _ = cpu_ms(lambda: answer.form("png"))
    network = 1000 * graph.seconds
    return {
        "decode": decoding,
        "network": network,
        "cut, normalise, blend": answering - network,
        "mask's PNG": form,
        "all": decoding + answering + form,
    }


def rows_of(size: tuple[int, int], sessions: Mapping[str, Timed]) -> list[list[str]]:
    image = photo(max(size))[: size[0], : size[1]]
    content = cv2.imencode(".png", image)[1].tobytes()
    height, width = (-(-side // STRIDE_PX) * STRIDE_PX for side in size)
    whole = np.zeros((1, 3, height, width), np.float32)
    answers = {name: answerer(name, session) for name, session in sessions.items()}
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in answers}
    alone: list[float] = []
    for turn in range(TURNS + 1):
        for name, segmenter in answers.items():
            taken[name].append(steps(segmenter, content))
        alone.append(cpu_ms(lambda: sessions["fit"].run(["logits"], {"tiles": whole}))[0])
        if not turn:  # to warm up
            alone.clear()
            for each in taken.values():
                each.clear()
    network_ms = statistics.median(alone)
    rows = []
    for name, each in taken.items():
        ms = {step: statistics.median(one[step] for one in each) for step in each[0]}
        answers[name].graph.num_pixels = 0
        steps(answers[name], content)
        shown = answers[name].graph.num_pixels / (size[0] * size[1])
        rows.append(
            [
                f"{size[0]}x{size[1]}",
                name,
                f"{shown:.2f}",
                *(f"{value:.1f}" for value in ms.values()),
                f"{ms['network'] / network_ms:.2f}",
                f"{ms['all'] / network_ms:.2f}",
                f"{1 - ms['network'] / ms['all']:.0%}",
            ]
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--storage", type=Path, default=Path("runs"))
    given = parser.parse_args()
    sessions = graphs(given.storage)
    rows = [row for size in SIZES for row in rows_of(size, sessions)]
    shares = ["network / its time on the image whole", "all / that", "besides the network"]
    header = [
        "image",
        "tiles",
        "pixels shown / image",
        "decode",
        "network",
        "cut, normalise, blend",
    ]
    write(
        __file__,
        f"An answer of segment's demo network ({NET.encoder}, squares of {TILES.tile_px}, overlap {TILES.overlap_px}), from the bytes of a PNG to the PNG of its mask: CPU time (ms) of one thread, medians of {TURNS} turns of all after one to warm up. Of a photograph's grain, so that the PNG is as hard to decode as any.",
        table([*header, "mask's PNG", "all", *shares], rows),
    )


if __name__ == "__main__":
    main()
