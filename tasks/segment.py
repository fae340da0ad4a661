"""Where is the defect? A U-Net over tiles of powder-bed layers, taught by heuristic or given masks.

    python tasks/segment.py                                            # the embedded layers
    python tasks/segment.py --preset files --data.root layers/ --masks.files "../masks/{name}.png"

The baseline, judged beside it, is the heuristic itself: the rule that masks are made by, or would be.
Where true masks are known besides those that were learnt from, both are judged by them.
"""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from assay.bundle import quantize
from assay.bundle.quantize import QuantizeConfig
from assay.cli.task import main
from assay.config import fingerprint, to_dict
from assay.data import layers
from assay.data.images.pixels import Pixels
from assay.data.inputs import tiles
from assay.data.inputs.crops import CropConfig, draw_crop
from assay.data.inputs.photometric import EPS
from assay.data.inputs.tiles import TileConfig
from assay.data.layers import LayerConfig
from assay.data.manifest import DataConfig, Manifest, read_manifest
from assay.data.masks import overlay
from assay.data.masks.prepare import prepare
from assay.data.masks.rules import MaskConfig, make, rule_levels
from assay.data.split import SplitConfig
from assay.data.synthetic import powder_bed
from assay.errors import ConfigError, QuantizeError
from assay.metrics import masks
from assay.metrics.scores.masks import component_columns, pixel_columns, validate_masks
from assay.nn.backbone import load_weights, normalise_layers
from assay.nn.export import GraphModule, write_graph
from assay.nn.mask_loss import MaskLoss, mask_loss
from assay.nn.optim import OptimConfig
from assay.train.monitor import Limit
from assay.train.task import Batch, BatchRows, Task, TaskConfig, TaskMetrics, TrainConfig

INT8 = "segment_int8"
PRIOR = 0.01
"""Share of pixels that a new network marks: rare, so that it need not first unlearn the common (Lin et al. 2017, 3.3)."""


@dataclass(frozen=True, kw_only=True)
class SegmentModelConfig:
    """What draws the mask, and what it learns by."""

    mode: Literal["net", "heuristic"] = "net"
    """A network, or the rule of masks.maker alone, which learns nothing."""
    arch: str = "unet"
    """Any architecture of segmentation-models-pytorch: unet, unetplusplus, deeplabv3plus, fpn, segformer..."""
    encoder: str = "mobilenet_v2"
    """Any of its encoders, or tu-NAME for a timm model."""
    weights: str = "none"
    """Encoder weights: none, hub (ImageNet, fetched), or a .safetensors file of the encoder."""
    decoder_channels: tuple[int, ...] = ()
    """Widths of a U-Net's decoder from the deepest block on; none: the architecture's own."""
    norm: Literal["batch", "sync", "group"] = "batch"
    """Normalisation: per worker's batch (so workers change the numbers a little), over all GPUs, or by groups of channels."""
    loss: MaskLoss = "combined"
    """dice, bce, focal, tversky, or dice and bce combined."""
    pos_weight: float = 1.0
    """Weight of pixels inside the mask in bce and combined."""
    tversky_beta: float = 0.7
    """Weight of missed pixels in tversky; falsely marked ones have the rest (1)."""


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(TaskConfig):
    """Segmentation of defects."""

    data: DataConfig = field(
        default_factory=lambda: DataConfig(
            patterns=("{build}/{layer}",), label="", group=("build",), domains=("build",)
        )
    )
    layers: LayerConfig = field(default_factory=LayerConfig)
    masks: MaskConfig = field(default_factory=MaskConfig)
    truth: str = ""
    """Pattern like masks.files of true masks, where training learns from others; test is judged by them."""
    crops: CropConfig = field(default_factory=CropConfig)
    tiles: TileConfig = field(default_factory=TileConfig)
    model: SegmentModelConfig = field(default_factory=SegmentModelConfig)
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)
    bed: powder_bed.LayersConfig = field(default_factory=powder_bed.LayersConfig)
    """The embedded layers, drawn where data.root is not given."""


class Segment(Task):
    """A network over crops in training and over tiles in use."""

    Config = SegmentConfig
    config: SegmentConfig

    def __init__(self, config: SegmentConfig, classes: list[str], pixels: Pixels) -> None:
        super().__init__(config, classes, pixels)
        self.net: nn.Module = _Nothing()
        if config.model.mode == "net":
            self.net = create_network(config.model, len(classes))
            self.net.to(memory_format=torch.channels_last)
            _try_sides(self.net, config)

    @classmethod
    def presets(cls) -> Mapping[str, TaskConfig]:
        """The embedded demo (default), its short form for CI, and settings for images of one's own."""
        demo = SegmentConfig(
            masks=MaskConfig(maker="adaptive", block_px=51, offset=20),
            truth="../truth/{folder}/{name}.png",
            split=SplitConfig(val=0.2, test=0.4),
            crops=CropConfig(crop_px=128, noise=0.03),
            tiles=TileConfig(tile_px=256, overlap_px=32),
            model=SegmentModelConfig(
                encoder="tu-mobilenetv2_050", decoder_channels=(64, 32, 24, 16, 8)
            ),
            train=TrainConfig(epochs=36, batch_size=8, eval_batch_size=8, val_every=6),
            optim=OptimConfig(lr=2e-3),
        )
        few = replace(demo.bed, num_builds=6, layers_per_build=3)
        brief = replace(demo.train, epochs=2, val_every=1)
        smoke = replace(demo, train=brief, optim=replace(demo.optim, lr=1e-2), bed=few)
        files = SegmentConfig(optim=OptimConfig(lr=1e-3))
        return {"demo": demo, "smoke": smoke, "files": files}

    @classmethod
    def manifest(cls, config: SegmentConfig, storage: Path) -> Manifest:
        """Layers, the masks that training learns from, and the true ones where they are known."""
        data = config.data
        if data.root is None:
            folder = storage / "embedded" / f"layers-{fingerprint(asdict(config.bed))}"
            powder_bed.draw_layers(folder, config.bed)
            data = replace(data, root=folder / "layers")
        elif config.layers.channels != "all":
            prepared = storage / "layers" / fingerprint([str(data.root), to_dict(config.layers)])
            data = replace(data, root=layers.collect(data.root, config.layers, prepared))
        assert data.root is not None
        manifest = read_manifest(data, storage / "hashes.sqlite")
        root = data.root if data.root.is_dir() else data.root.parent
        rules = {"label": config.masks}
        if config.truth:
            rules["truth"] = replace(config.masks, files=config.truth)
        images = [*zip(manifest.column("id"), map(Path, manifest.column("image")), strict=True)]
        made = {}
        for kind, rule in rules.items():
            drawn = storage / "masks" / f"{kind}-{fingerprint([str(data.root), to_dict(rule)])}"
            made[kind] = prepare(images, root, rule, drawn)
        return manifest.with_masks(made, config.masks.classes, storage / "hashes.sqlite")

    @classmethod
    def baselines(cls, config: SegmentConfig) -> Mapping[str, SegmentConfig]:
        """The heuristic: the rule that masks are made by, without a network."""
        if config.model.mode == "heuristic":
            return {}
        # what has no effect on it is set to the defaults, so that one run serves all networks
        still = SegmentConfig(
            data=config.data, layers=config.layers, masks=config.masks, truth=config.truth, split=config.split,
            bed=config.bed, decide=config.decide, model=SegmentModelConfig(mode="heuristic"),
            quantize=QuantizeConfig(variant="none"), train=TrainConfig(epochs=0),
        )  # fmt: skip
        return {"heuristic": still}

    @classmethod
    def prepare(cls, config: SegmentConfig, pixels: Pixels, samples: BatchRows) -> Batch:
        """Crops and their masks to train on; of layers to be judged the rows alone, as tiles are cut later."""
        batch: Batch = {
            "row": samples.rows,
            "key": samples.keys.astype(np.int64) & 0x7FFFFFFFFFFF,
        }
        if not samples.train:
            return batch
        drawn = [
            draw_crop(pixels, int(row), config.crops, int(key))
            for row, key in zip(samples.rows, samples.keys, strict=True)
        ]
        images, own = (np.stack(values) for values in zip(*drawn, strict=True))
        entries = [pixels[int(row)] for row in samples.rows]
        mean = np.stack([entry.mean for entry in entries]).astype(np.float32)
        std = np.stack([np.maximum(entry.std, 1 / 255) for entry in entries]).astype(np.float32)
        return batch | {"image": images, "mask": own, "mean": mean, "std": std}

    def forward(self, batch: Batch, progress: float, phase: str = "main") -> dict[str, Tensor]:
        """Loss of the crops' masks."""
        model = self.config.model
        image = torch.from_numpy(batch["image"]).to(self.device).permute(0, 3, 1, 2).float()
        mean, std = (
            torch.from_numpy(batch[name]).to(self.device)[:, :, None, None]
            for name in ("mean", "std")
        )
        logits = self._run((image / 255 - mean) / (std + EPS))
        numbers = torch.arange(1, len(self.classes) + 1, device=self.device)[:, None, None]
        inside = (torch.from_numpy(batch["mask"]).to(self.device)[:, None] == numbers).float()
        losses = mask_loss(model.loss, logits, inside, model.pos_weight, model.tversky_beta)
        shown, share = logits.detach().float().sigmoid().mean(), inside.mean()
        found = {"loss": losses.mean(), "marked_share": shown}
        # of a batch without a pixel inside nothing can be said
        return found | ({"marked_ratio": shown / share} if share > 0 else {})

    def _run(self, normalised: Tensor) -> Tensor:
        logits: Tensor = self.net(normalised.contiguous(memory_format=torch.channels_last))
        return logits

    def levels(self, row: int) -> np.ndarray:
        """Levels (classes h w) of every pixel of a row's image."""
        entry = self.pixels[row]
        if self.config.model.mode == "heuristic":
            return rule_levels(entry.pixels, self.config.masks, len(self.classes))

        def network(normalised: np.ndarray) -> np.ndarray:
            moved = torch.from_numpy(normalised).to(self.device)
            logits: np.ndarray = self._run(moved).float().cpu().numpy()
            return logits

        return tiles.level_map(entry, network, len(self.classes), self.config.tiles)

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Pixels inside and outside each mask, by their level."""
        return self._columns(batch, pixel_columns)

    def predict_once(self, batch: Batch) -> dict[str, Tensor]:
        """Components found and false alarms, by threshold."""
        return self._columns(batch, component_columns)

    def _columns(
        self, batch: Batch, count: Callable[[np.ndarray, np.ndarray, str], dict[str, np.ndarray]]
    ) -> dict[str, Tensor]:
        found: list[dict[str, np.ndarray]] = []
        for row in batch["row"].tolist():
            levels = self.levels(row)
            counted = [
                count(levels, self.pixels.mask(row, kind), kind) for kind in self.pixels.masks
            ]
            found.append({name: values for own in counted for name, values in own.items()})
        return {name: torch.from_numpy(np.stack([own[name] for own in found])) for name in found[0]}

    @classmethod
    def validate(cls, config: Any, columns: Batch, truth: np.ndarray) -> dict[str, float]:
        """Micro IoU on val at the best threshold, by the masks that training learns from; NLL per pixel."""
        return validate_masks(columns, len(config.masks.classes))

    @classmethod
    def score(
        cls, config: SegmentConfig, predictions: pa.Table, fitted: pa.Table | None = None
    ) -> pa.Table:
        """IoU of each layer, at thresholds that val chose."""
        if fitted is not None:
            return masks.score(predictions, masks.thresholds_of(fitted))
        num, least = len(config.masks.classes), config.decide.pixel_recall
        return masks.score(predictions, masks.fit_thresholds(predictions, num, least))

    @classmethod
    def judge(cls, config: SegmentConfig, predictions: pa.Table, storage: Path) -> TaskMetrics:
        """Pixels, layers, components, false alarms, calibration."""
        metrics, figures = masks.findings(predictions, config.masks.classes)
        return TaskMetrics(metrics=metrics, figures=figures, measures=masks.MEASURES)

    @classmethod
    def draw(
        cls, config: SegmentConfig, pixels: Pixels, row: int, answer: Callable[[], Any]
    ) -> np.ndarray | None:
        """The layer; the answer and the heuristic over it, against the mask that is judged by."""
        kind = "truth" if "truth" in pixels.masks else "label"
        image = pixels[row].cut((0, 0, *pixels[row].size[::-1]))
        rule, _ = make(pixels[row].pixels, config.masks)
        marks = {"answer": answer().mask, "heuristic": rule.astype(np.uint8)}
        return overlay.panels(image, np.asarray(pixels.mask(row, kind)), marks)

    def limits(self) -> Sequence[Limit]:
        """A network that marks nothing, or everything, has learnt the share of the mask and no more."""
        return [
            Limit("marked_ratio", low=0.01, for_updates=100, why="nothing is marked any more: raise --model.pos-weight, or take --model.loss combined"),
            Limit("marked_share", high=0.95, for_updates=100, why="nearly everything is marked: lower --model.pos-weight, or see whether the masks are inverted (--masks.dark)"),
        ]  # fmt: skip

    def export(self, folder: Path, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Graph `segment` (normalised tiles to logits and embedding), and its int8 form where it holds on val."""
        config, side = self.config, self.config.tiles.tile_px
        card: dict[str, Any] = {
            "kind": "tiles", "graphs": [], "tiles": to_dict(config.tiles), "masks": to_dict(config.masks),
        }  # fmt: skip
        if config.model.mode == "heuristic":
            return card
        graph = folder / "segment.onnx"
        outputs = ["logits", "embedding"]
        write_graph(graph, self, self._described, ("tiles", (3, side, side)), outputs)
        card["graphs"] = ["segment"]
        if config.quantize.variant == "none":
            return card
        try:
            made = quantize.quantize(
                graph, folder / f"{INT8}.onnx", self._calibration(rows["train"]),
                lambda path: self._with(path)._iou(rows["val"]), config.quantize,
            )  # fmt: skip
        except QuantizeError as refused:
            return card | {"refused": str(refused)}  # the float graph ships alone
        return card | {"int8": [INT8], "quantized": made.to_dict()}

    def _described(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and the encoder's deepest features, averaged over each tile."""
        kept: list[Tensor] = []
        encoder = cast(nn.Module, self.net.encoder)
        # of transformers (dpt) the encoder gives prefix tokens beside the feature maps
        hook = encoder.register_forward_hook(
            lambda _, __, found: kept.append((found[0] if isinstance(found, tuple) else found)[-1])
        )
        logits = self.net(tiles)
        hook.remove()
        return logits, kept[0].mean((2, 3))

    def int8(self, folder: Path) -> "Segment | None":
        """This task with the int8 graph in the network's place."""
        path = folder / f"{INT8}.onnx"
        return self._with(path) if path.exists() else None

    def _with(self, graph: Path) -> "Segment":
        other = Segment(self.config, self.classes, self.pixels)
        other.net = GraphModule(graph)
        return other.eval()

    def _iou(self, rows: np.ndarray) -> float:
        columns = self.predict({"row": rows})
        arrays = {name: values.numpy() for name, values in columns.items()}
        return validate_masks(arrays, len(self.classes))["iou"]

    def _calibration(self, rows: np.ndarray) -> list[dict[str, np.ndarray]]:
        """Tiles of training layers, evenly chosen."""
        num = min(self.config.quantize.num_calibration, len(rows))
        chosen = rows[np.linspace(0, len(rows) - 1, num).astype(int)]
        found: list[dict[str, np.ndarray]] = []
        for row in chosen.tolist():
            tiles.level_map(
                self.pixels[row],
                lambda x: self._keep(x, found),
                len(self.classes),
                self.config.tiles,
            )
        return found[: self.config.quantize.num_calibration]

    def _keep(self, normalised: np.ndarray, found: list[dict[str, np.ndarray]]) -> np.ndarray:
        found.extend({"tiles": tile[None]} for tile in normalised)
        return np.zeros((len(normalised), len(self.classes), *normalised.shape[2:]), np.float32)


class _Nothing(nn.Module):
    """A place for the device, where no network is needed."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))


def create_network(config: SegmentModelConfig, num_classes: int) -> nn.Module:
    """A network of segmentation-models-pytorch, from an image (b 3 h w) to logits (b classes h w).

    Raises:
        ConfigError: there is no such architecture, encoder or file of weights.
    """
    options: dict[str, Any] = {}
    if config.decoder_channels:
        options |= {
            "decoder_channels": config.decoder_channels,
            "encoder_depth": len(config.decoder_channels),
        }
    try:
        net: nn.Module = smp.create_model(
            config.arch, encoder_name=config.encoder, in_channels=3, classes=num_classes,
            encoder_weights="imagenet" if config.weights == "hub" else None, **options,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        known = [*smp.encoders.get_encoder_names(), *smp.MODEL_ARCHITECTURES_MAPPING]
        close = difflib.get_close_matches(config.encoder, known) + difflib.get_close_matches(
            config.arch, known
        )
        raise ConfigError(
            f"There is no network {config.arch} with encoder {config.encoder} and {options or 'its own options'} ({str(error).splitlines()[0][:120]}); "
            f"nearest names: {', '.join(dict.fromkeys(close)) or 'none'}."
        ) from None
    except OSError as error:
        raise ConfigError(
            f"The weights of {config.encoder} are not on this machine and the hub cannot be reached ({type(error).__name__}); "
            "use --model.weights FILE or --model.weights none."
        ) from None
    head = cast(Any, net).segmentation_head
    last = [layer for layer in head.modules() if isinstance(layer, nn.Conv2d)][-1]
    nn.init.constant_(cast(Tensor, last.bias), math.log(PRIOR / (1 - PRIOR)))
    if config.weights not in ("none", "hub"):
        load_weights(cast(Any, net).encoder, config.encoder, Path(config.weights))
    return normalise_layers(net, config.norm)


@torch.no_grad()
def _try_sides(net: nn.Module, config: SegmentConfig) -> None:
    """Some encoders take one size alone, and say so only when they run."""
    net.eval()
    for name, side in (
        ("crops.crop-px", config.crops.crop_px),
        ("tiles.tile-px", config.tiles.tile_px),
    ):
        try:
            net(torch.zeros(1, 3, side, side))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"{config.model.arch} with {config.model.encoder} does not take {name} {side} ({str(error).splitlines()[0][:120]}); give another size, or another --model.norm."
            ) from None
    net.train()


if __name__ == "__main__":
    main(__file__)
