"""The base of tasks that give any backbone the features of a frozen one, learnt from unlabelled images."""

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Interval
from torch import Tensor, nn

from assay.config import Settings
from assay.data.dataset import Dataset
from assay.data.inputs.views import ViewConfig
from assay.errors import ConfigError
from assay.nn.backbone import create_backbone, doubt_groups, feature_width, timm_name, try_size
from assay.nn.norms import Norm
from assay.nn.pruning import prune_blocks
from assay.nn.self_supervised.features import feature_loss
from assay.nn.weights import find_weights, load_weights
from assay.train.embedding import Embedding, EmbeddingConfig
from assay.train.task import Batch
from assay.train.task_config import TaskConfig, doubt_constants

TEACHER_OPTION = "--teacher.weights"


@dataclass(frozen=True, kw_only=True)
class StudentConfig(Settings, section="model"):
    """What learns, and embeds an image."""

    backbone: str = "mobilenetv3_small_100"
    """Any timm model, or texture_small."""
    weights: str = "none"
    """Its weights at the start: none, hub (fetched by timm), a .safetensors file, or the folder of a run that was pretrained."""
    keep_blocks: Annotated[int, Interval(ge=0, le=1000)] = 0
    """Blocks of a vision transformer that stay, evenly from the first to the last (pruned by depth); 0: all."""
    norm: Norm = "group"
    """Batch normalisation: replaced by group norm, frozen (what is loaded), synced over GPUs, or per worker's batch."""


@dataclass(frozen=True, kw_only=True)
class FrozenConfig(Settings, section="teacher"):
    """Whose features are learnt."""

    backbone: str = "vit_small_patch14_dinov2"
    """Any timm model."""
    weights: str = "hub"
    """Its weights: hub (fetched by timm), a .safetensors file, or the folder of a run that was pretrained; none: it knows nothing, for tests."""


@dataclass(frozen=True, kw_only=True)
class FeatureDistillationConfig(EmbeddingConfig):
    """A student, and a teacher that stays as it is; both see the same large crops."""

    views: ViewConfig = field(default_factory=lambda: ViewConfig(num_local=0))
    model: StudentConfig = field(default_factory=StudentConfig)
    teacher: FrozenConfig = field(default_factory=FrozenConfig)

    def __post_init__(self) -> None:
        """Refuse views that nothing is learnt from, and a head on tokens, of which any backbone need not have some."""
        super().__post_init__()
        if self.ship == "linear":
            raise ConfigError(
                "ship is 'linear', a head on the tokens of a vision transformer, and features are distilled into any backbone; give logistic."
            )
        if self.views.num_local:
            raise ConfigError(
                f"views.num-local is {self.views.num_local}, and features are compared on large crops alone; give 0, and a smaller views.global-area for crops that show little."
            )

    def doubts(self) -> list[str]:
        """Say so where the teacher is shown images otherwise than it has learnt from, or a student's weights by another norm."""
        name, student = timm_name(self.teacher.backbone), self.model
        constants = doubt_constants(name, self.teacher.weights, self.image)
        groups = doubt_groups(timm_name(student.backbone), student.weights, student.norm)
        return [*super().doubts(), *constants, *groups]


class FeatureDistillation(Embedding):
    """A backbone, a projection to the teacher's features, and the teacher; the backbone is what is exported."""

    Config: ClassVar[type[TaskConfig]] = FeatureDistillationConfig
    config: Any

    def __init__(self, config: Any, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        model, teacher = config.model, timm_name(config.teacher.backbone)
        size = config.views.global_px
        self.backbone = create_backbone(
            timm_name(model.backbone), weights=model.weights, norm=model.norm, img_size=size
        )
        if model.keep_blocks:
            prune_blocks(self.backbone, model.backbone, model.keep_blocks)
        self.teacher = create_backbone(teacher, norm="batch", img_size=size)
        load_weights(self.teacher, teacher, config.teacher.weights, TEACHER_OPTION)
        frame = config.image.height_px, config.image.width_px
        try_size(self.backbone, model.backbone, (size, size), "views.global-px")
        try_size(self.backbone, model.backbone, frame, "image.height-px and image.width-px")
        try_size(self.teacher, teacher, (size, size), "views.global-px")
        self.teacher.requires_grad_(False)
        self.project = nn.Linear(feature_width(self.backbone), feature_width(self.teacher))

    @classmethod
    def fetch(cls, config: Any) -> None:
        """Fetch the weights of both."""
        find_weights(timm_name(config.model.backbone), config.model.weights)
        teacher = timm_name(config.teacher.backbone)
        find_weights(teacher, config.teacher.weights, TEACHER_OPTION, has_norm=False)

    def train(self, mode: bool = True) -> "FeatureDistillation":
        """Switch modes; the teacher always answers as it does when judged."""
        super().train(mode)
        self.teacher.eval()
        return self

    def embed(self, images: Tensor) -> Tensor:
        """Return the student's features."""
        features: Tensor = self.backbone(images)
        return features

    def losses(self, batch: Batch, progress: float, phase: str) -> tuple[dict[str, Tensor], Tensor]:
        """Compare the student's projection with the teacher's features of each view."""
        views = self.to_device(batch["global"])
        crops = views.transpose(0, 1).flatten(0, 1)
        features = self.backbone(crops)
        with torch.no_grad():
            wanted = self.teacher(crops)
        loss = feature_loss(self.project(features), wanted)
        return {"features": loss}, features[: len(views)]
