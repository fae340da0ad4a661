"""What embeddings are worth to whoever has labels: neighbours, a logistic regression, linear heads, few labels.

All learn from train's rows; val chooses; each set is then answered once. `answer` adds columns to a table of
predictions, `findings` computes every number from them:

    logits              the main answer: by the 20 nearest of other groups, or by the head that ships
    logits_knn_10...    by 10, 100 and 200, where train has more rows than that; by 20 where a head ships
    logits_logistic     by the logistic regression whose C val has chosen
    logits_linear       by the linear head that val has chosen, where tokens were predicted
    logits_attention    by the head that is learnt group by group, where groups have several images and one class each
    attention           logarithms, up to a constant, of what images weigh in their groups by that head; view_score where it ships
    hits_labels         whether the labels of a share of train's groups answer rightly: shares and draws in turn
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from assay.metrics.estimate import Estimate, interval
from assay.metrics.evaluate import by_group, is_mixed
from assay.metrics.figure import Figure, Series
from assay.metrics.frozen_heads import EmbeddedRows, Ship, fit_heads, has_views
from assay.metrics.group_ranking import MEASURES as GROUPS_RANKED
from assay.metrics.group_ranking import group_scores, measure_groups
from assay.metrics.label_efficiency import SHARES, LabelledShare, label_efficiency
from assay.metrics.measures import Measure
from assay.metrics.predictions import class_names, lists_of, rows_of, sets_of
from assay.metrics.ranking import MEASURES as RANKED
from assay.metrics.ranking import measure_ranking
from assay.metrics.scores.neighbours import NUM_NEIGHBOURS, votes_of_neighbours
from assay.shapes import Bool, Float, Int

NUMBERS_OF_NEIGHBOURS = (10, 100, 200)
"""Besides the 20 of the main answer (DINOv2)."""

NOTE = b"probes"
"""Metadata that says what val has chosen, and how many labels there were."""

HEADS = {
    "logistic": "a logistic regression",
    "linear": "a linear head on the tokens",
    "attention": "a head that is learnt from groups, asked for single images,",
}

MEASURES = {
    **{
        f"knn_{k}_accuracy": Measure(f"{k} neighbours", f"accuracy by {k} neighbours in train")
        for k in (NUM_NEIGHBOURS, *NUMBERS_OF_NEIGHBOURS)
    },
    **{
        f"{head}_accuracy": Measure(
            f"{head.title()} accuracy",
            f"of {what} learnt from train's embeddings and chosen on val",
        )
        for head, what in HEADS.items()
    },
    **{
        f"{head}_group_accuracy": Measure(f"{head.title()}, groups", f"groups by {pooling}")
        for head, pooling in zip(
            HEADS, (*["its mean logits"] * 2, "its logits, weighed by its attention"), strict=True
        )
    },
    **{
        f"labels_{share:.0%}_accuracy".replace("%", ""): Measure(
            f"Labels of {share:.0%}",
            f"accuracy by the labels of {share:.0%} of train's groups, and of one of each class at least",
        )
        for share in SHARES
    },
    **RANKED,
    **GROUPS_RANKED,
}
"""How these measures are shown."""


def answer(rows: pa.Table, bank: pa.Table, ship: Ship = "embedding") -> pa.Table:
    """Answer rows of val and of the sets that are judged by train's; the tokens, which are many numbers, go.

    Where a head ships, its answer is the main one, and the head is kept in the table's metadata.
    """
    num = len(class_names(rows))
    group = np.unique([*rows["group"].to_pylist(), *bank["group"].to_pylist()], return_inverse=True)
    asked, learnt = (
        _embedded(table, codes)
        for table, codes in zip((rows, bank), np.split(group[1], [len(rows)]), strict=True)
    )
    is_val = np.array(rows["split"].to_pylist()) == "val"
    same = asked.group[:, None] == learnt.group
    numbers = [NUM_NEIGHBOURS, *(k for k in NUMBERS_OF_NEIGHBOURS if k < len(bank))]
    near = asked.embedding, learnt.embedding, learnt.truth
    votes = votes_of_neighbours(*near, num, same, numbers)
    fits = fit_heads(asked, is_val, learnt, num)
    columns = {"logits": votes[NUM_NEIGHBOURS], **fits.columns}
    columns |= {f"logits_knn_{k}": votes[k] for k in numbers[1:]}
    given = (asked.embedding, asked.truth), (learnt.embedding, learnt.truth)
    shares = label_efficiency(*given, learnt.group, num)
    columns["hits_labels"] = np.concatenate([share.hits for share in shares]).T.astype(np.float32)
    notes = fits.notes | {"labels": [[s.share, s.num_groups, len(s.hits)] for s in shares]}
    metadata = (rows.schema.metadata or {}) | {NOTE: json.dumps(notes).encode()}
    if ship != "embedding":
        columns[f"logits_knn_{NUM_NEIGHBOURS}"] = columns["logits"]
        columns["logits"] = columns[f"logits_{ship}"]
        columns |= {"view_score": columns["attention"]} if ship == "attention" else {}
        metadata |= fits.heads[ship].note()
    if asked.tokens is not None:
        rows = rows.drop(["tokens"])
    for name, values in columns.items():
        rows = rows.append_column(name, pa.array(list(values)))
    return rows.replace_schema_metadata(metadata)


def _embedded(table: pa.Table, group: Int[np.ndarray, " num"]) -> EmbeddedRows:
    embedding, tokens = lists_of(table, "embedding").astype(np.float64), None
    if "tokens" in table.column_names:
        tokens = lists_of(table, "tokens").reshape(len(table), -1, embedding.shape[1])
    return EmbeddedRows(embedding, tokens, _truth(table), group)


def findings(
    predictions: pa.Table, positive: str
) -> tuple[dict[str, dict[str, Estimate]], list[Figure]]:
    """Measure each set of a table that `answer` has gone through.

    Args:
        predictions: the table.
        positive: of two classes that to be told; the second where it is not named.
    """
    metrics, figures = {}, []
    for name in sets_of(predictions):
        rows = rows_of(predictions, name)
        shares = _shares(rows)
        metrics[name] = _accuracies(rows)
        if len(class_names(rows)) == 2:
            metrics[name] |= _ranking(rows, rows_of(predictions, "val"), positive)
        metrics[name] |= {
            f"labels_{100 * share.share:g}_accuracy": _of_share(rows, share) for share in shares
        }
        if name != "val":
            figures.append(_figure(name, rows, shares))
    return metrics, figures


def _accuracies(rows: pa.Table) -> dict[str, Estimate]:
    """Estimate the accuracy of every further answer, and of the heads' answers to groups."""
    truth, group, estimates = _truth(rows), _group(rows), {}
    for column in rows.column_names:
        if not column.startswith("logits_"):
            continue
        name, logits = column.removeprefix("logits_"), lists_of(rows, column)
        estimates[f"{name}_accuracy"] = interval((logits.argmax(1) == truth) * 1.0, group)
        if name in HEADS and not is_mixed(truth, group):
            scores = rows["attention"].to_numpy() if name == "attention" else None
            pooled, _, of_group = by_group(logits, truth, group, scores)
            right = (pooled.argmax(1) == of_group) * 1.0
            estimates[f"{name}_group_accuracy"] = interval(right, np.arange(len(right)))
    return estimates


def _ranking(rows: pa.Table, val: pa.Table, positive: str) -> dict[str, Estimate]:
    """Measure how the logistic regression ranks rows of two classes, and how groups are ranked by what it says of their rows."""
    label = class_names(rows).index(positive) if positive else 1
    asked, chosen = (
        (_margins(t, "logits_logistic", label), _truth(t) == label) for t in (rows, val)
    )
    ranked = measure_ranking(*asked, _group(rows), chosen)
    if not all(has_views(_truth(t), _group(t)) for t in (rows, val)):
        return ranked
    of_rows, of_val = (_of_groups(t, label) for t in (rows, val))
    return ranked | measure_groups(*of_rows, of_val)


def _of_groups(
    table: pa.Table, label: int
) -> tuple[dict[str, Float[np.ndarray, " groups"]], Bool[np.ndarray, " groups"]]:
    """Return the scores of groups by each rule, and whether they are of a class."""
    truth, group, attending = _truth(table), _group(table), None
    if "attention" in table.column_names:
        attending = _margins(table, "logits_attention", label), table["attention"].to_numpy()
    margins = _margins(table, "logits_logistic", label)
    is_positive = np.zeros(group.max() + 1, bool)
    is_positive[group] = truth == label
    return group_scores(margins, attending, group), is_positive


def _margins(table: pa.Table, column: str, label: int) -> Float[np.ndarray, " num"]:
    logits = lists_of(table, column)
    return logits[:, label] - logits[:, 1 - label]


def _shares(rows: pa.Table) -> list[LabelledShare]:
    hits, first, shares = lists_of(rows, "hits_labels").T == 1, 0, []
    for share, num_groups, num_draws in note_of(rows)["labels"]:
        shares.append(LabelledShare(share, num_groups, hits[first : first + num_draws]))
        first += num_draws
    return shares


def note_of(predictions: pa.Table) -> Mapping[str, Any]:
    """Return what val has chosen, and how many labels each share was."""
    note: Mapping[str, Any] = json.loads(predictions.schema.metadata[NOTE])
    return note


def _of_share(rows: pa.Table, share: LabelledShare) -> Estimate:
    """Estimate the accuracy by a share of labels, mean of its draws; the interval is over the groups that are judged."""
    return interval(share.hits.mean(0), _group(rows))


def _figure(name: str, rows: pa.Table, shares: list[LabelledShare]) -> Figure:
    spread = "; ".join(
        f"{share.share:.0%} are {share.num_groups} groups, draws {share.hits.mean(1).min():.3f} to {share.hits.mean(1).max():.3f}"
        for share in shares
    )
    estimates = [_of_share(rows, share) for share in shares]
    num_groups = len(np.unique(_group(rows)))
    return Figure(
        title=f"Accuracy by labels, {name}",
        kind="line",
        x="groups of train whose labels are given",
        x_log=True,
        y="accuracy",
        y_range=[0.0, 1.0],
        series={
            "logistic regression": Series.from_estimates(
                [float(share.num_groups) for share in shares], estimates
            )
        },
        caption=f"n = {len(rows)} images in {num_groups} groups; bands: 95 % over these, of the mean of {len(shares[0].hits)} draws. {spread}; of each class one group at least. C is 1 at each.",
    )


def _truth(table: pa.Table) -> np.ndarray:
    truth: np.ndarray = table["truth"].to_numpy()
    return truth


def _group(table: pa.Table) -> np.ndarray:
    codes: np.ndarray = np.unique(table["group"].to_pylist(), return_inverse=True)[1]
    return codes
