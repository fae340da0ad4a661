"""Heads on what a frozen backbone gives: learnt from train's rows, chosen on val; the one that ships stands in the table.

logistic    a logistic regression on embeddings (see `logistic`)
linear      a linear layer on the tokens of a vision transformer (see `linear_grid`)
attention   a linear layer that is learnt group by group, and weighs a group's images (see `attention_pooling`)
"""

import json
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa

from assay.metrics.attention_pooling import Views, choose_attention
from assay.metrics.evaluate import is_mixed
from assay.metrics.linear_grid import choose_head
from assay.metrics.logistic import Scale, choose_logistic
from assay.shapes import Bool, Float, Int

Ship: TypeAlias = Literal["embedding", "logistic", "linear", "attention"]
"""What a bundle answers with: a vector, or classes by one of the heads."""

NOTE = b"head"
"""Metadata that holds the head which ships."""


class FrozenHead(NamedTuple):
    """From features x to logits (x - mean) weights + bias."""

    mean: Float[np.ndarray, " d"]
    weights: Float[np.ndarray, "d classes"]
    bias: Float[np.ndarray, " classes"]
    blocks: int = 1
    """Blocks, from the end, whose class tokens are the features."""
    pooled: bool = False
    """Whether the mean of the patch tokens is among them."""
    query: Float[np.ndarray, " d"] | None = None
    """Images of a group weigh exp((x - mean) query); None: alike."""

    def note(self) -> dict[bytes, bytes]:
        """Return metadata to be kept with a table."""
        values = {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in self._asdict().items()
        }
        return {NOTE: json.dumps(values).encode()}

    @classmethod
    def of_table(cls, predictions: pa.Table) -> "FrozenHead":
        """Read the head that was kept with a table."""
        values: dict[str, Any] = json.loads(predictions.schema.metadata[NOTE])
        lists = {name: v for name, v in values.items() if isinstance(v, list)}
        return cls(**values | {name: np.array(v) for name, v in lists.items()})


class EmbeddedRows(NamedTuple):
    """Rows that heads look at."""

    embedding: Float[np.ndarray, "num d"]
    tokens: Float[np.ndarray, "num parts d"] | None
    """None where the backbone has none."""
    truth: Int[np.ndarray, " num"]
    group: Int[np.ndarray, " num"]


class HeadFits(NamedTuple):
    """What val has chosen."""

    columns: dict[str, np.ndarray]
    """Answers to each row, by column of the table."""
    heads: dict[str, FrozenHead]
    notes: dict[str, Any]
    """Settings that val has chosen."""


def has_views(truth: Int[np.ndarray, " num"], group: Int[np.ndarray, " num"]) -> bool:
    """Tell whether some group has several rows, and each group one class."""
    return np.unique(group).size < group.size and not is_mixed(truth, group)


def fit_heads(
    rows: EmbeddedRows, is_val: Bool[np.ndarray, " num"], bank: EmbeddedRows, num_classes: int
) -> HeadFits:
    """Learn each head that there can be from a bank; answer all rows by it.

    Args:
        rows: Rows that are judged.
        is_val: Those of them that choose.
        bank: Rows of train; of groups that no row is of.
        num_classes: All classes.
    """
    fits = [_fit_logistic(rows, is_val, bank, num_classes)]
    if rows.tokens is not None:
        fits.append(_fit_linear(rows, is_val, bank, num_classes))
    truth, group = (np.concatenate(pair) for pair in zip(rows[2:], bank[2:], strict=True))
    if has_views(bank.truth, bank.group) and not is_mixed(truth, group):
        fits.append(_fit_attention(rows, is_val, bank, num_classes))
    columns, heads, notes = (
        {name: value for part in parts for name, value in part.items()}
        for parts in zip(*fits, strict=True)
    )
    return HeadFits(columns, heads, notes)


def _fit_logistic(
    rows: EmbeddedRows, is_val: Bool[np.ndarray, " num"], bank: EmbeddedRows, num_classes: int
) -> HeadFits:
    scale = Scale.of(bank.embedding)
    asked, learnt = scale.design(rows.embedding), scale.design(bank.embedding)
    val = asked[is_val], rows.truth[is_val]
    strength, weights = choose_logistic(learnt, bank.truth, val, num_classes)
    head = FrozenHead(scale.mean, weights[:-1] / scale.std[:, None], weights[-1])
    columns = {"logits_logistic": asked @ weights}
    return HeadFits(columns, {"logistic": head}, {"strength": strength})


def _fit_linear(
    rows: EmbeddedRows, is_val: Bool[np.ndarray, " num"], bank: EmbeddedRows, num_classes: int
) -> HeadFits:
    assert rows.tokens is not None
    assert bank.tokens is not None
    val = np.flatnonzero(is_val), rows.truth[is_val]
    chosen = choose_head(rows.tokens, bank.tokens, bank.truth, val, num_classes)
    mean, inputs = np.zeros(len(chosen.weights)), (chosen.blocks, chosen.pooled)
    head = FrozenHead(mean, chosen.weights, chosen.bias, *inputs)
    note = dict(zip(("blocks", "pooled", "rate"), (*inputs, chosen.rate), strict=True))
    return HeadFits({"logits_linear": chosen.logits}, {"linear": head}, {"head": note})


def _fit_attention(
    rows: EmbeddedRows, is_val: Bool[np.ndarray, " num"], bank: EmbeddedRows, num_classes: int
) -> HeadFits:
    scale = Scale.of(bank.embedding)
    asked, learnt = scale.design(rows.embedding), scale.design(bank.embedding)
    val = Views(asked[is_val], rows.truth[is_val], rows.group[is_val])
    train = Views(learnt, bank.truth, bank.group)
    strength, weights, query = choose_attention(train, val, num_classes)
    folded = weights[:-1] / scale.std[:, None], weights[-1]
    head = FrozenHead(scale.mean, *folded, query=query[:-1] / scale.std)
    columns = {"logits_attention": asked @ weights, "attention": asked @ query}
    return HeadFits(columns, {"attention": head}, {"attention_strength": strength})
