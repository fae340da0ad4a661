"""Algorithms with fixed weights, batches of few domains, and closeness of tensors."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from assay.nn.domains.base import Algorithm, Sizes, TrainBatch
from assay.nn.domains.build import build_algorithm
from assay.nn.domains.config import AlgorithmConfig

SIZES = Sizes(num_features=5, num_flat=20, num_classes=3, num_domains=4)


class Batch:
    """Twelve rows of domains 0, 1 and 3; domain 2 is absent."""

    def __init__(self, seed: int = 0, domains: tuple[int, ...] = (0, 0, 1, 1, 3, 3) * 2) -> None:
        generator = torch.Generator().manual_seed(seed)
        num = len(domains)
        self.head = nn.Linear(5, 3)
        with torch.no_grad():
            for parameter in self.head.parameters():
                parameter.normal_(generator=generator)
        self.maps = torch.randn(num, 5, 2, 2, generator=generator).requires_grad_()
        self.truth = torch.randint(3, (num,), generator=generator)
        self.domains = torch.tensor(domains)
        self.groups = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 3, 4, 5, 5])[:num]

    def seen(self, progress: float = 0.9, phase: str = "main", **changed: Tensor) -> TrainBatch:
        vectors = changed.pop("vectors", self.maps.mean((2, 3)))
        logits = changed.pop("logits", self.head(vectors))
        losses = nn.functional.cross_entropy(logits, self.truth, reduction="none")
        fields = {"domains": self.domains, "groups": self.groups} | changed
        return TrainBatch(
            features=self.maps,
            vectors=vectors,
            logits=logits,
            losses=losses,
            truth=self.truth,
            progress=progress,
            phase=phase,
            **fields,
        )

    def parts(self, values: Tensor) -> list[Tensor]:
        return [values[self.domains == code] for code in (0, 1, 3)]


@pytest.fixture(scope="session")
def make_batch() -> type[Batch]:
    """Makes a batch with a head of its own, the same each time."""
    return Batch


@pytest.fixture(scope="session")
def algorithm_of() -> Callable[..., Algorithm]:
    """Makes an algorithm with weights of its own, the same each time."""

    def make(name: Any, **fields: Any) -> Algorithm:
        torch.manual_seed(1)
        return build_algorithm(AlgorithmConfig(name=name, **fields), SIZES)

    return make


@pytest.fixture(scope="session")
def close() -> Callable[..., None]:
    """Checks that two tensors, arrays or numbers are close."""

    def check(actual, expected, **tolerance) -> None:
        torch.testing.assert_close(torch.as_tensor(actual), torch.as_tensor(expected), **tolerance)

    return check
