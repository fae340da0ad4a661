"""One answer from many patches."""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Interval
from jaxtyping import Float
from torch import Tensor, nn

from assay.config import Settings
from assay.errors import ConfigError

Dropout = Annotated[float, Interval(ge=0, lt=1)]
"""A probability that leaves something."""


@dataclass(frozen=True, kw_only=True)
class AggregatorConfig(Settings, section="model"):
    """What makes one answer of several patches."""

    embed_dim: Annotated[int, Interval(ge=1, le=65_536)] = 1024
    """Width of the transformer."""
    num_layers: Annotated[int, Interval(ge=1, le=1000)] = 2
    """Cross-attention layers."""
    num_heads: Annotated[int, Interval(ge=1, le=1024)] = 16
    """Attention heads."""
    d_inner: Annotated[int, Interval(ge=1, le=65_536)] = 4096
    """Hidden width of the feed-forward layers."""
    dropout: Dropout = 0.1
    """Dropout after attention and feed-forward layers (probability)."""
    attn_dropout: Dropout = 0.1
    """Dropout of attention weights (probability)."""
    positions: bool = False
    """Add a learned position to each of the k patches, in the order of the grid, so that their number and order count."""

    def __post_init__(self) -> None:
        """Refuse heads that cannot share the width."""
        super().__post_init__()
        if self.embed_dim % self.num_heads:
            raise ConfigError(
                f"model.num-heads is {self.num_heads} and model.embed-dim {self.embed_dim}; give a number of heads that divides the width."
            )

    def aggregator(self, in_dim: int, num_classes: int, k: int) -> "TransformerAggregator":
        """Build the aggregator of k patches with so many features."""
        return TransformerAggregator(
            in_dim,
            num_classes,
            num_patches=k if self.positions else None,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            embed_dim=self.embed_dim,
            d_inner=self.d_inner,
            dropout=self.dropout,
            attn_dropout=self.attn_dropout,
        )


class TransformerAggregator(nn.Module):
    """Learned queries that attend to the patches of an image, then a linear classifier.

    The cross-attention pooling of iterative patch selection (Bergner et al. 2023), stacked: the
    first layer's queries are parameters, each further layer asks the same patches again with
    what the one before it answered. Without positions it is a function of the set of patches,
    whatever their number and order.

    Args:
        in_dim: Features of a patch.
        num_classes: Logits.
        num_patches: Number of patches, if their order is to count (a learned position for
            each, added to its token); None takes any number, in any order.
        num_layers: Cross-attention layers.
        num_heads: Heads of a layer, a divisor of `embed_dim`.
        embed_dim: Width of the tokens.
        d_inner: Hidden width of the feed-forward layers.
        dropout: On what attention and feed-forward layers put out.
        attn_dropout: On the attention weights.
        num_tokens: Queries, averaged before the classifier.
    """

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        *,
        num_patches: int | None = None,
        num_layers: int = 2,
        num_heads: int = 16,
        embed_dim: int = 1024,
        d_inner: int = 4096,
        dropout: float = 0.1,
        attn_dropout: float = 0.1,
        num_tokens: int = 1,
    ) -> None:
        super().__init__()
        assert embed_dim % num_heads == 0
        self.project = nn.Linear(in_dim, embed_dim)
        self.positions = None
        if num_patches is not None:
            self.positions = nn.Parameter(torch.zeros(1, num_patches, embed_dim))
        self.queries = nn.Parameter(torch.empty(1, num_tokens, embed_dim))
        nn.init.normal_(self.queries, std=1 / math.sqrt(embed_dim))
        self.layers = nn.ModuleList(
            _CrossAttention(num_heads, embed_dim, d_inner, dropout, attn_dropout)
            for _ in range(num_layers)
        )
        self.head = nn.Linear(embed_dim, num_classes)

    def forward(
        self, patches: Float[Tensor, "batch k features"]
    ) -> tuple[
        Float[Tensor, "batch classes"], Float[Tensor, "batch k"], Float[Tensor, "batch embed"]
    ]:
        """Classify images by their patches.

        Returns:
            Logits; the share of attention each patch had, averaged over queries, heads and layers (before
            dropout), whose rows sum to 1; and the embedding that the classifier decides from.
        """
        tokens = self.project(patches)
        if self.positions is not None:
            tokens = tokens + self.positions
        queries = self.queries.expand(tokens.shape[0], -1, -1)
        attns = []
        for layer in self.layers:
            queries, attn = layer(queries, tokens)
            attns.append(attn)
        embedding = queries.mean(1)
        return self.head(embedding), torch.stack(attns).mean(0), embedding


class _CrossAttention(nn.Module):
    def __init__(
        self, num_heads: int, embed_dim: int, d_inner: int, dropout: float, attn_dropout: float
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(embed_dim, embed_dim, bias=False)
        self.key = nn.Linear(embed_dim, embed_dim, bias=False)
        self.value = nn.Linear(embed_dim, embed_dim, bias=False)
        self.join = nn.Linear(embed_dim, embed_dim, bias=False)
        self.feed_forward = nn.Sequential(
            nn.Linear(embed_dim, d_inner), nn.ReLU(), nn.Linear(d_inner, embed_dim)
        )
        self.norm_attn = nn.LayerNorm(embed_dim, eps=1e-6)
        self.norm_feed = nn.LayerNorm(embed_dim, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        self.attn_dropout = nn.Dropout(attn_dropout)

    def forward(self, queries: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        query, key, value = (
            split.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for split in (self.query(queries), self.key(tokens), self.value(tokens))
        )
        logits = query @ key.mT / math.sqrt(query.shape[3])
        attn = logits.softmax(3)
        answer = (self.attn_dropout(attn) @ value).transpose(1, 2).flatten(2)
        queries = self.norm_attn(queries + self.dropout(self.join(answer)))
        queries = self.norm_feed(queries + self.dropout(self.feed_forward(queries)))
        return queries, attn.mean((1, 2))
