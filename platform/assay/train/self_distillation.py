"""The base of tasks that learn from unlabelled images by a student and its teacher (DINOv2's method).

The student is taught to say of one part of an image what the teacher, the mean of what the student was, says
of another: of the whole (DINO), and of places that it was not shown (iBOT). The teacher is what is embedded,
judged and exported. Oquab et al. 2023, "DINOv2: learning robust visual features without supervision".

Where this differs from the published code by design: each crop's mask follows from its own key, so that a batch may
be shared out in any way (there: shares of a batch's masks are spread evenly over it); means and the nearest
neighbours of KoLeo are taken over all workers; positions are interpolated by timm's way; a batch is always whole.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch
from annotated_types import Interval
from torch import Tensor, nn

from assay.config import Settings, Share
from assay.data.dataset import Dataset
from assay.data.order import group_order
from assay.errors import ConfigError
from assay.metrics.frozen_heads import FrozenHead
from assay.nn.backbone import timm_name
from assay.nn.optim import Multiplier
from assay.nn.self_supervised.branch import Branch
from assay.nn.self_supervised.collapse import spread_rank, uniform_divergence, usage_entropy
from assay.nn.self_supervised.dino import Assignment, Centering, dino_losses
from assay.nn.self_supervised.gram import gram_loss
from assay.nn.self_supervised.head import HeadConfig
from assay.nn.self_supervised.ibot import draw_masks, ibot_loss
from assay.nn.self_supervised.koleo import koleo_loss
from assay.nn.self_supervised.schedules import RatesConfig, TeacherConfig, Temperature
from assay.nn.self_supervised.teacher import follow
from assay.nn.self_supervised.vit import VitConfig
from assay.nn.weights import find_weights
from assay.train.embedding import Embedding, EmbeddingConfig
from assay.train.monitor import Limit
from assay.train.task import Batch, BatchRows, TaskMetrics
from assay.train.task_config import TaskConfig

HEAD_BLOCKS = 4
"""Blocks, from the end, that linear heads may look at (DINOv2)."""

LABELS = "supervised learns the labels of the large crops"
OF_VIEWS = [
    *(f"teacher.{name}" for name in ("start_temperature", "temperature", "warmup")),
    *(f"views.{name}" for name in ("num_local", "local_px", "local_area")),
    "rates.freeze_prototypes",
]
"""Settings, beside those of the loss, that nothing follows where labels are learnt."""

Weight = Annotated[float, Interval(ge=0, le=100)]


@dataclass(frozen=True, kw_only=True)
class DistillationLossConfig(Settings, section="loss"):
    """What the student is asked for."""

    dino: Weight = 1.0
    """Weight of what it says of whole images."""
    ibot: Weight = 1.0
    """Weight of what it says of hidden places."""
    koleo: Weight = 0.1
    """Weight of how near embeddings are to each other, for each large crop."""
    gram: Weight = 0.0
    """Weight of the Gram anchor: places of an image stay as like each other as they were to the weights at the start."""
    student_temperature: Temperature = 0.1
    """Temperature of what it says."""
    centering: Centering = "centering"
    """What keeps the teacher from giving one prototype to all."""
    mask_probability: Share = 0.5
    """Probability that places of a large crop are hidden."""
    mask_ratio: tuple[Share, Share] = (0.1, 0.5)
    """Least and largest share of them that is hidden."""

    def __post_init__(self) -> None:
        """Refuse a loss of nothing, and a ratio the wrong way round."""
        super().__post_init__()
        if not (self.dino or self.asks_places):
            raise ConfigError(
                "loss.dino is 0, and so is loss.ibot or loss.mask-probability: nothing is asked of the student; give one a weight."
            )
        low, high = self.mask_ratio
        if low > high:
            raise ConfigError(f"loss.mask-ratio goes from {low} to {high}; give the smaller first.")

    def idle(self) -> dict[str, str]:
        """Name settings without effect."""
        if not self.ibot:
            return dict.fromkeys(("mask_probability", "mask_ratio"), "loss.ibot is 0")
        if not self.mask_probability:
            return dict.fromkeys(("ibot", "mask_ratio"), "loss.mask-probability is 0")
        return {}

    @property
    def asks_places(self) -> bool:
        """Whether places are hidden and asked for."""
        return bool(self.ibot and self.mask_probability)


@dataclass(frozen=True, kw_only=True)
class SelfDistillationConfig(EmbeddingConfig):
    """Self-supervision of a vision transformer; labels are judged by and never learnt from."""

    balance: Literal["images", "groups"] = "images"
    """What is served equally often: images, or groups, however many images they have."""
    supervised: bool = False
    """Learn the labels in the place of views, by a linear layer on the class tokens of the large crops: what the same backbone, crops and updates come to with all labels; losses, heads and temperatures have no effect then."""
    model: VitConfig = field(default_factory=VitConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    loss: DistillationLossConfig = field(default_factory=DistillationLossConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    rates: RatesConfig = field(default_factory=RatesConfig)

    def __post_init__(self) -> None:
        """Refuse views that the backbone cannot cut into patches, or that leave nothing to compare."""
        super().__post_init__()
        views, patch = self.views, self.model.patch_px
        if views.num_global < 2:
            raise ConfigError(
                f"views.num-global is {views.num_global}; give 2 or more: of one large crop the teacher is asked, and of another the student."
            )
        for name in ("global_px", "local_px"):
            if (side := getattr(views, name)) % patch:
                raise ConfigError(
                    f"views.{name.replace('_', '-')} is {side}, and {self.model.backbone} cuts patches of {patch} pixels; give a multiple of {patch}."
                )

    def idle(self) -> dict[str, str]:
        """Name settings without effect."""
        names = super().idle()
        if not self.loss.asks_places:
            names["head.separate"] = "no place is hidden"
        if not self.optim.weight_decay:
            names["rates.final_weight_decay"] = "optim.weight-decay is 0"
        if self.supervised:
            losses = [f"loss.{each.name}" for each in fields(self.loss)]
            names |= dict.fromkeys(losses + OF_VIEWS, LABELS)
        return names


class SelfDistillation(Embedding):
    """A student and its teacher."""

    Config: ClassVar[type[TaskConfig]] = SelfDistillationConfig
    config: Any

    def __init__(self, config: Any, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        size = config.image.height_px, config.image.width_px
        separate = config.head.separate and config.loss.asks_places
        self.student = Branch(config.model, replace(config.head, separate=separate), size)
        self.teacher = deepcopy(self.student).requires_grad_(False)
        self.anchor = deepcopy(self.teacher.backbone) if config.loss.gram else None
        num, centering = config.head.num_prototypes, config.loss.centering
        self.assign, self.assign_places = Assignment(num, centering), Assignment(num, centering)
        if not config.loss.asks_places:
            self.student.backbone.mask_token.requires_grad_(False)
        self.classifier: nn.Module | None = None
        if config.supervised:
            self._learn_labels()
        self.watched: dict[str, Tensor] = {}

    def _learn_labels(self) -> None:
        """Put a linear layer in the place of prototypes, which rest with what hides places.

        Raises:
            ConfigError: there are no labels.
        """
        if len(self.classes) < 2:
            raise ConfigError(
                f"--supervised learns the labels, and the images have {len(self.classes) or 'no'} class; give labels (--data.label), or leave it out."
            )
        self.classifier = nn.Linear(self.student.backbone.num_features, len(self.classes))
        for name, parameter in self.student.named_parameters():
            parameter.requires_grad_(name.startswith("backbone.vit."))

    @classmethod
    def fetch(cls, config: Any) -> None:
        """Fetch the backbone's weights."""
        find_weights(timm_name(config.model.backbone), config.model.weights, has_norm=False)

    @classmethod
    def order(cls, config: Any, dataset: Dataset, rows: np.ndarray, epoch: int) -> list[np.ndarray]:
        """Order images, or groups in turn; what is left of an epoch that fills no batch is left out."""
        size, seed = config.train.batch_size, config.train.seed
        if config.balance == "groups":
            batches = group_order(rows, dataset.group.codes[rows], size, seed, epoch)
        else:
            batches = super().order(config, dataset, rows, epoch)
        return [batch for batch in batches if len(batch) == size] or batches

    @classmethod
    def prepare(cls, config: Any, dataset: Dataset, samples: BatchRows) -> Batch:
        """Return views, and which patches of the large ones are hidden (n g patches)."""
        batch = super().prepare(config, dataset, samples)
        if samples.train:
            loss, num = config.loss, config.views.num_global
            side = config.views.global_px // config.model.patch_px
            drawing = loss.mask_probability if loss.asks_places else 0.0, loss.mask_ratio
            rngs = [np.random.default_rng([key, 2]) for key in samples.keys.tolist()]
            masks = [draw_masks(num, (side, side), *drawing, rng) for rng in rngs]
            batch["mask"] = np.stack(masks).reshape(len(masks), num, -1)
        return batch

    def embed(self, images: Tensor) -> Tensor:
        """Return the teacher's class tokens."""
        classes: Tensor = self.teacher.backbone(images)[0]
        return classes

    def seen_by(self, head: FrozenHead, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens that a head looks at, or embeddings for one on these; and embeddings."""
        if self.config.ship != "linear":
            return super().seen_by(head, images)
        tokens = self.teacher.backbone.last_tokens(images, HEAD_BLOCKS)
        last = tokens.shape[1] - 1
        return tokens[:, last - head.blocks : last + head.pooled].flatten(1), tokens[:, last - 1]

    def predict_once(self, batch: Batch) -> dict[str, Tensor]:
        """Predict what linear heads are given: class tokens of the teacher's last blocks, then the mean patch token (n parts*d)."""
        tokens = self.teacher.backbone.last_tokens(self.to_device(batch["image"]), HEAD_BLOCKS)
        return {"tokens": tokens.flatten(1)}

    def losses(self, batch: Batch, progress: float, phase: str) -> tuple[dict[str, Tensor], Tensor]:
        """Compare what the student says with what the teacher says; return the teacher's embeddings of the first crops."""
        if self.classifier is not None:
            return self._class_losses(batch, self.classifier)
        loss, temperature = self.config.loss, self.config.teacher.temperature_at(progress)
        # crops of a kind after each other: all images' first, then all images' second
        large, small, places = (
            self.to_device(batch[name]).transpose(0, 1) for name in ("global", "local", "mask")
        )
        num_large, num = large.shape[:2]
        large, places = large.flatten(0, 1), places.flatten(0, 1)
        with torch.no_grad():
            teacher = self.teacher(large, places)
            probs = self.assign(teacher.logits, temperature)
            place_probs = self.assign_places(teacher.patch_logits, temperature)
        student = self.student(large, places, hide=True)
        shape = (-1, num, self.config.head.num_prototypes)
        terms = {}
        if loss.dino:
            logits = student.logits.view(shape), self._small_logits(small)
            parts = dino_losses(*logits, probs.view(shape), loss.student_temperature)
            terms = {"dino_global": loss.dino * parts[0], "dino_local": loss.dino * parts[1]}
        if loss.asks_places:
            of_places = student.patch_logits, place_probs, places
            terms["ibot"] = loss.ibot * ibot_loss(*of_places, loss.student_temperature)
        if loss.koleo:
            halves = student.classes.chunk(num_large)
            terms["koleo"] = loss.koleo * torch.stack([koleo_loss(half) for half in halves]).sum()
        if self.anchor is not None:
            terms["gram"] = loss.gram * gram_loss(student.patches, self.anchor(large)[1])
        embeddings = teacher.classes[:num]
        self._watch(probs, embeddings)
        return terms, embeddings

    def _class_losses(
        self, batch: Batch, classifier: nn.Module
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the cross-entropy of the large crops' classes, and the teacher's embeddings of the first crops."""
        large = self.to_device(batch["global"]).transpose(0, 1)
        truth = self.to_device(batch["truth"]).repeat(len(large))
        logits = classifier(self.student(large.flatten(0, 1)).classes)
        with torch.no_grad():
            embeddings = self.teacher(large[0]).classes
        return {"class": nn.functional.cross_entropy(logits, truth)}, embeddings

    def _small_logits(self, small: Tensor) -> Tensor:
        """Return the student's logits (l n k) of the small crops (l n 3 t t), of which there may be none."""
        shape = (*small.shape[:2], self.config.head.num_prototypes)
        if not len(small):
            return small.new_zeros(shape)
        logits: Tensor = self.student(small.flatten(0, 1)).logits
        return logits.view(shape)

    def _watch(self, probs: Tensor, embeddings: Tensor) -> None:
        self.watched = {
            "prototype_usage": usage_entropy(probs),
            "teacher_divergence": uniform_divergence(probs),
            "effective_rank": spread_rank(embeddings),
        }

    def forward(self, batch: Batch, progress: float, phase: str = "main") -> dict[str, Tensor]:
        """Sum the losses; watch how far the teacher tells images apart."""
        return super().forward(batch, progress, phase) | self.watched

    def limits(self) -> Sequence[Limit]:
        """Stop where the teacher gives one prototype to all, or none to any, or embeds along one line."""
        if self.classifier is not None:
            return super().limits()
        help = "lower --optim.lr, raise --teacher.momentum, or take --loss.centering sinkhorn_knopp"
        bounds = {
            "prototype_usage": (0.05, f"the teacher gives few prototypes to all images; {help}"),
            "teacher_divergence": (0.01, f"the teacher gives all prototypes alike; {help}"),
            "effective_rank": (1.2, f"embeddings differ along one line alone; {help}"),
        }
        collapses = [Limit(name, low=low, why=why) for name, (low, why) in bounds.items()]
        return [*super().limits(), *collapses]

    def of_groups(self) -> list[str]:
        """Name settings in use that several images of a group are needed for."""
        balance = ["--balance groups"] if self.config.balance == "groups" else []
        return [*super().of_groups(), *balance]

    @classmethod
    def judge(cls, config: Any, predictions: pa.Table, storage: Path) -> TaskMetrics:
        """Judge as embeddings are; say so where few labels are no few, as the backbone has learnt all."""
        judged = super().judge(config, predictions, storage)
        why = "The backbone has learnt all labels of train (--supervised), so that accuracy by the labels of some groups is not what these alone come to."
        return judged | TaskMetrics(warnings=[why] if config.supervised else [])

    def param_groups(self, progress: float) -> Mapping[str, Multiplier]:
        """Return the rates of backbone and prototypes, and how far weight decay has risen."""
        heads = ["head"] if self.student.patch_head is None else ["head", "patch_head"]
        return self.config.rates.multipliers(
            "student.backbone",
            len(self.student.backbone.vit.blocks),
            [f"student.{head}.prototypes." for head in heads],
            self.config.optim.weight_decay,
            progress,
        )

    def after_step(self, progress: float) -> None:
        """Let the teacher follow."""
        follow(self.teacher, self.student, self.config.teacher.momentum_at(progress))
