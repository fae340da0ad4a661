"""The base of classifications that are to hold on domains never seen: any algorithm of `nn.domains`.

A task gives `features` and calls `add_head`, as with `Classification`; which domain column, which
algorithm, which batches and which weights are judged, the settings say.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch
from annotated_types import Interval
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from assay.config import Settings
from assay.data.dataset import Column, Dataset
from assay.data.domains import domain_doubts
from assay.data.order import balanced_order
from assay.errors import ConfigError
from assay.metrics.estimate import Estimate
from assay.metrics.measures import Measure
from assay.metrics.predictions import rows_of, sets_of
from assay.metrics.probe import probe_domain, probe_group
from assay.nn.averaging import AverageConfig, WeightAverage
from assay.nn.domains.base import Sizes, TrainBatch
from assay.nn.domains.build import ALGORITHMS, build_algorithm
from assay.nn.domains.config import PUBLISHED, AlgorithmConfig, domainbed_space
from assay.nn.domains.consistency import divergence, logit_variance
from assay.nn.optim import Multiplier
from assay.space import Space
from assay.train.classification import Classification, ClassificationConfig, pooled, share_right
from assay.train.monitor import Limit
from assay.train.task import Batch, TaskMetrics
from assay.train.task_config import TaskConfig

ALONE = ("erm", "sagnet")
"""Algorithms that do without a second domain."""

OF_SEVERAL_ROWS = ("coral", "mmd", "irm", "fishr")
"""Algorithms that pass over a domain of which a batch has one row."""

MOST_PROBED = 512
"""Features that are kept for probes; of more, neighbours are averaged."""

MEASURES = {
    "domain_probe": Measure("Domain probe", "domains that frozen features of other groups tell"),
    "domain_chance": Measure("by chance", "domains told by the commonest"),
    "group_probe": Measure("Group probe", "groups that frozen features of their other rows tell"),
    "group_chance": Measure("by chance", "groups told by the commonest"),
}


@dataclass(frozen=True, kw_only=True)
class DomainsConfig(Settings, section="domains"):
    """Over what a model is to generalise, and what its batches and statistics hold."""

    column: str = ""
    """Domain column (one of data.domains); left out: the only one there is."""
    order: Literal["balanced", "uniform"] = "balanced"
    """Batches: of all domains equally and of distinct groups, or of rows as they come."""
    rows_per_group: Annotated[int, Interval(ge=1, le=100_000)] = 1
    """Rows of one group that stand together in a batch, as a consistency needs (balanced)."""
    batch_norm: Literal["train", "frozen"] = "train"
    """Statistics of batch normalisation: of each batch, or those that the weights came with (DomainBed)."""

    def idle(self) -> dict[str, str]:
        """Name settings without effect."""
        is_uniform = self.order == "uniform"
        return {"rows_per_group": "domains.order is uniform"} if is_uniform else {}


@dataclass(frozen=True, kw_only=True)
class DomainClassificationConfig(ClassificationConfig):
    """What every classification across domains holds; a task adds its own fields."""

    domains: DomainsConfig = field(default_factory=DomainsConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    average: AverageConfig = field(default_factory=AverageConfig)

    def refuse_unlabelled(self) -> str:
        """Say why images without labels teach nothing: the algorithm needs labels, or batches are as rows come."""
        able = [name for name, algorithm in ALGORITHMS.items() if algorithm.takes_unlabelled]
        if self.algorithm.name not in able:
            return f"algorithm.name is {self.algorithm.name}, where {', '.join(able)} have a loss of domains without labels"
        return "domains.order is uniform" if self.domains.order == "uniform" else ""

    def doubts(self) -> list[str]:
        """Say where batches hold no two rows of a group whose answers are to be alike."""
        is_asked, domains = self.algorithm.consistency != "none", self.domains
        if not is_asked or domains.order == "uniform" or domains.rows_per_group > 1:
            return super().doubts()
        why = "--algorithm.consistency compares the rows of a group, and domains.rows-per-group is 1, so that a batch has several only where a domain has too few groups; give --domains.rows-per-group 2 or more."
        return [*super().doubts(), why]


class DomainClassification(Classification):
    """Whole images to classes, whatever their domain.

    Raises:
        ConfigError: there is no such domain column, or train has too few domains for the algorithm.
    """

    Config: ClassVar[type[TaskConfig]] = DomainClassificationConfig

    def __init__(
        self, config: TaskConfig, dataset: Dataset, classes: Sequence[str] | None = None
    ) -> None:
        super().__init__(config, dataset, classes)
        self.domain = dataset.domain(self.config.domains.column)
        seen = np.concatenate([dataset.train, dataset.unlabelled])
        self.num_domains = len(np.unique(self.domain.codes[seen]))
        """Domains that are seen in training; modules are built for all, of which others are never a target."""
        name = self.config.algorithm.name
        if self.num_domains == 1 and name not in ALONE:
            (code,) = np.unique(self.domain.codes[dataset.train])
            raise ConfigError(
                f"All images of train are of one domain ({self.domain.values[code]}), and {name} compares several; "
                "give train images of another, or set --algorithm.name erm."
            )

    def add_head(self, num_features: int, num_flat: int = 0) -> None:
        """Put a linear classifier on the features, and the algorithm beside it; the last of the modules.

        `num_flat` counts features with their places, where maps are given (for dann-source). What stands below
        gives no gradient where it is not to learn.
        """
        if not self.config.algorithm.body_lr:
            self.requires_grad_(False)
        super().add_head(num_features)
        num_codes = len(self.domain.values)
        sizes = Sizes(num_features, num_flat or num_features, len(self.classes), num_codes)
        self.algorithm = build_algorithm(self.config.algorithm, sizes)
        self.algorithm.refuse_strangers(self)
        self.phases = self.algorithm.phases
        if self.config.average.weights != "last":
            self.average = WeightAverage(self.config.average, self)

    def forward(self, batch: Batch, progress: float, phase: str = "main") -> dict[str, Tensor]:
        """Return the algorithm's loss with what the task adds to it.

        Rows without labels go through the network with the others, whose batch normalisation they share, and then
        into the loss of domains alone.
        """
        domains = self._codes(self.domain, batch["row"])
        targets = nn.functional.one_hot(self.truth(batch), len(self.classes)).float()
        images, targets = self.algorithm.mix(self.normalised(batch), targets, domains)
        with self.algorithm.inside(self, domains), torch.set_grad_enabled(phase == "main"):
            features = self.features(images)
        has_label = ~np.isin(batch["row"], self.dataset.unlabelled)
        if has_label.all():
            return self._learn(batch, features, targets, None, progress, phase)
        known = self.to_device(has_label)
        unlabelled = pooled(features[~known]), domains[~known]
        labelled = {name: values[has_label] for name, values in batch.items()}
        return self._learn(labelled, features[known], targets[known], unlabelled, progress, phase)

    def _learn(
        self,
        batch: Batch,
        features: Tensor,
        targets: Tensor,
        unlabelled: tuple[Tensor, Tensor] | None,
        progress: float,
        phase: str,
    ) -> dict[str, Tensor]:
        """Return the loss of rows with labels, beside which stand vectors and domains of those without."""
        truth, rows = self.truth(batch), batch["row"]
        domains, groups = self._codes(self.domain, rows), self._codes(self.dataset.group, rows)
        vectors = pooled(features)
        logits = self.head(self.algorithm.restyle(vectors))
        losses = self.row_losses(logits, targets)
        computed = features, vectors, logits, losses, truth, domains, groups, progress, phase
        outputs: dict[str, Tensor] = self.algorithm(TrainBatch(*computed, unlabelled))
        if not len(truth):  # of a part of a batch
            return outputs
        if phase == "main":
            terms = self.penalties(features, logits, batch, progress, phase)
            outputs["loss"] = sum(terms.values(), outputs["loss"])
            outputs |= {f"{name}_loss": term for name, term in terms.items()}
        return outputs | {"train_accuracy": share_right(logits, truth)}

    def penalties(
        self, features: Tensor, logits: Tensor, batch: Batch, progress: float, phase: str
    ) -> dict[str, Tensor]:
        """Return the consistency of each group's answers, where it is asked for."""
        config = self.config.algorithm
        if config.consistency == "none":
            return {}
        groups = self._codes(self.dataset.group, batch["row"])
        measure = logit_variance if config.consistency == "variance" else divergence
        return {"consistency": config.consistency_weight * measure(logits, groups)}

    def predict_once(self, batch: Batch) -> dict[str, Tensor]:
        """Predict features for the probes; an exported graph in the network's place has none."""
        columns = super().predict_once(batch)
        if self.graph is not None:
            return columns
        vectors = pooled(self.features(self.normalised(batch)))
        num = min(vectors.shape[1], MOST_PROBED)
        return columns | {"features": nn.functional.adaptive_avg_pool1d(vectors, num)}

    @classmethod
    def judge(cls, config: Any, predictions: pa.Table, storage: Path) -> TaskMetrics:
        """Probe the features of each set for domain and group: what a shortcut would be made of."""
        judged = super().judge(config, predictions, storage)
        if "features" not in predictions.column_names:
            return judged
        names = [n for n in predictions.column_names if n.startswith("domain.")]
        column = f"domain.{config.domains.column}" if config.domains.column else names[0]
        metrics: dict[str, dict[str, Estimate]] = {}
        for name in sets_of(predictions):
            rows = rows_of(predictions, name)
            features = np.array(rows["features"].to_pylist())
            group = np.array(rows["group"].to_pylist())
            domain, truth = np.array(rows[column].to_pylist()), rows["truth"].to_numpy()
            probes = {
                "domain": probe_domain(features, domain, truth, group),
                "group": probe_group(features, group),
            }
            metrics[name] = {}
            for kind, probe in probes.items():
                if probe is not None:
                    metrics[name] |= {
                        f"{kind}_probe": probe.accuracy,
                        f"{kind}_chance": probe.chance,
                    }
        return judged | TaskMetrics(metrics=metrics, measures=MEASURES)

    def doubts(self) -> Sequence[str]:
        """Say which domains have one class alone, which groups several classes or domains, and where batches are too small."""
        data, name, size = self.dataset, self.config.algorithm.name, self.config.train.batch_size
        doubts = domain_doubts(self.classes, data.truth, self.domain, data.group, data.train)
        each = 2 if name in OF_SEVERAL_ROWS else 1
        if name not in ALONE and size < each * self.num_domains:
            doubts.append(
                f"train.batch-size is {size}, and {name} compares {each} or more rows of each of the {self.num_domains} domains of train; give {each * self.num_domains} or more, or it learns as erm does."
            )
        return doubts

    def _codes(self, column: Column, rows: np.ndarray) -> Tensor:
        return self.to_device(column.codes[rows].astype(np.int64))

    @classmethod
    def order(cls, config: Any, dataset: Dataset, rows: np.ndarray, epoch: int) -> list[np.ndarray]:
        """Balance domains in each batch, those without labels too, unless batches are to be as rows come."""
        if config.domains.order == "uniform":
            return super().order(config, dataset, rows, epoch)
        domains, groups = dataset.domain(config.domains.column), dataset.group
        rows = np.concatenate([rows, dataset.unlabelled])
        return balanced_order(
            rows,
            domains.codes[rows],
            groups.codes[rows],
            config.train.batch_size,
            config.train.seed,
            epoch,
            config.domains.rows_per_group,
        )

    @classmethod
    def baselines(cls, config: Any) -> Mapping[str, Any]:
        """Give ERM beside any other algorithm, judged on the same rows."""
        if config.algorithm.name == "erm":
            return {}
        split = config.split
        if split.unlabelled == "train":  # of which erm makes no use
            split = replace(split, unlabelled="drop")
        rates = {name: getattr(config.algorithm, name) for name in ("head_lr", "body_lr")}
        plain = AlgorithmConfig(**rates)
        return {"erm": replace(config, algorithm=plain, split=split)}

    @classmethod
    def space(cls, config: Any) -> Space:
        """Return what DomainBed searches for the algorithm that is set."""
        return domainbed_space(config.algorithm.name)

    def param_groups(self, progress: float) -> Mapping[str, Multiplier]:
        """Give the network and the heads their rates."""
        config = self.config.algorithm
        adversary = self.algorithm.is_adversarial
        rate = config.value("discriminator_lr") if adversary else config.head_lr
        return {
            "": Multiplier(lr=config.body_lr),
            "head.": Multiplier(lr=config.head_lr),
            "algorithm.": Multiplier(lr=rate),
        }

    @property
    def loss_settles(self) -> float:
        """Share of the run after which a penalty has its weight."""
        config = self.config.algorithm
        return float(config.value("anneal")) if "anneal" in PUBLISHED[config.name] else 0.0

    def limits(self) -> Sequence[Limit]:
        """Stop an adversary that explodes; say so where the domain is told far better, or worse, than by chance."""
        if not self.algorithm.is_adversarial:
            return ()
        chance, bound = 1 / self.num_domains, 3 * math.log(self.num_domains)
        explodes = (
            f"the adversary explodes (the bound is 3 ln {self.num_domains}); lower --algorithm.weight, "
            "--algorithm.discriminator-lr or --optim.lr, or set --optim.grad-clip."
        )
        is_far = (
            f"chance is {chance:.3g}; where it is far above, the features still tell the domain, and far below, "
            "they mislead about it instead of hiding it; try another --algorithm.weight."
        )
        low, high = chance / 4, (1 + chance) / 2
        return (
            Limit("domain_loss", high=bound, why=explodes),
            Limit("late_domain_accuracy", low=low, high=high, then="warn", why=is_far),
        )

    def train(self, mode: bool = True) -> "DomainClassification":
        """Change the mode, but of batch normalisation that is frozen."""
        super().train(mode)
        if self.config.domains.batch_norm == "frozen":
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def after_step(self, progress: float) -> None:
        """Take the weights into their average."""
        if self.config.average.weights != "last":
            self.average.update(self, progress)

    @contextmanager
    def judged(self, predict: Callable[[], Mapping[str, np.ndarray]]) -> Iterator[None]:
        """Judge and save the averaged weights; of swad, look at val by the last ones before."""
        if self.config.average.weights == "last":
            yield
            return
        if self.config.average.weights == "swad":
            self.average.look(self, self.validate(dict(predict()))["nll"])
        with self.average.in_place(self):
            yield
