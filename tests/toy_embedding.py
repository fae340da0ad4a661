"""A task that embeds an image in two numbers of each channel, for tests of what embeddings have in common.

A task file like any other: tests load it with `load_task`.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from assay.data.dataset import Dataset
from assay.data.inputs.image import ImageConfig
from assay.data.inputs.views import ViewConfig
from assay.train.embedding import Embedding, EmbeddingConfig
from assay.train.task import BatchRows

CONFIG = EmbeddingConfig(
    image=ImageConfig(height_px=16, width_px=20),
    views=ViewConfig(num_global=2, num_local=1, global_px=16, local_px=8),
)


class Channels(Embedding):
    """Mean and deviation of each channel; two terms of the loss."""

    def __init__(self, config: Any, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        self.scale = nn.Parameter(torch.ones(6))

    def embed(self, images: Tensor) -> Tensor:
        return self.scale * torch.cat([images.mean((2, 3)), images.std((2, 3))], dim=1)

    def losses(self, batch: Any, progress: float, phase: str) -> tuple[dict[str, Tensor], Tensor]:
        vectors = self.embed(torch.from_numpy(batch["global"][:, 1]))
        return {"near": vectors.square().mean(), "far": 3 * self.scale.mean()}, vectors


def batch_of(task: Embedding, rows: np.ndarray, train: bool = True) -> Any:
    keys = np.arange(len(rows), dtype=np.uint64) + np.uint64(11)
    return type(task).prepare(task.config, task.dataset, BatchRows(rows, keys, train))
