"""The aggregator is a function of the set of patches."""

import pytest
import torch

from assay.errors import ConfigError
from assay.nn.aggregate import AggregatorConfig, TransformerAggregator


def aggregator(**options) -> TransformerAggregator:
    torch.manual_seed(0)
    small = {"num_heads": 4, "embed_dim": 32, "d_inner": 48} | options
    return TransformerAggregator(10, 6, **small).eval()


@pytest.mark.parametrize("num_tokens", [1, 3])
def test_answers_do_not_depend_on_order_and_attention_follows_it(num_tokens):
    model, patches = aggregator(num_tokens=num_tokens), torch.randn(3, 7, 10)
    order = torch.randperm(7)
    logits, attn, _ = model(patches)
    shuffled_logits, shuffled_attn, _ = model(patches[:, order])
    torch.testing.assert_close(shuffled_logits, logits)
    torch.testing.assert_close(shuffled_attn, attn[:, order])
    assert (attn - 1 / 7).abs().max() > 1e-4  # it does attend


@pytest.mark.parametrize("num_patches", [1, 4, 9])
def test_any_number_of_patches_and_attention_sums_to_one(num_patches):
    logits, attn, _ = aggregator().train()(torch.randn(2, num_patches, 10))
    assert logits.shape == (2, 6)
    torch.testing.assert_close(attn.sum(1), torch.ones(2))
    assert (attn >= 0).all()


def test_positions_make_order_count():
    model, patches = aggregator(num_patches=5), torch.randn(2, 5, 10)
    torch.testing.assert_close(model(patches)[0], model(patches.flip(1))[0])  # zeros at first
    torch.nn.init.normal_(model.positions)
    assert not torch.allclose(model(patches)[0], model(patches.flip(1))[0], atol=1e-3)


def test_one_layer_equals_pytorchs_attention():
    """The same weights in torch.nn.MultiheadAttention give the same answer."""
    model, patches = aggregator(num_layers=1), torch.randn(2, 5, 10)
    layer = model.layers[0]
    theirs = torch.nn.MultiheadAttention(32, 4, bias=False, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(
            torch.cat([layer.query.weight, layer.key.weight, layer.value.weight])
        )
        theirs.out_proj.weight.copy_(layer.join.weight)
        tokens = model.project(patches)
        answer, attn = theirs(model.queries.expand(2, -1, -1), tokens, tokens)
        answer = layer.norm_attn(model.queries + answer)
        answer = layer.norm_feed(answer + layer.feed_forward(answer))
        logits, ours, embedding = model(patches)
    torch.testing.assert_close(logits, model.head(answer[:, 0]))
    torch.testing.assert_close(ours, attn[:, 0])
    torch.testing.assert_close(embedding, answer[:, 0])


def test_every_parameter_gets_a_gradient():
    model = aggregator(num_tokens=2).train()
    model(torch.randn(4, 5, 10))[0].logsumexp(1).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_heads_share_the_width():
    assert AggregatorConfig(embed_dim=12, num_heads=3).num_heads == 3
    with pytest.raises(ConfigError, match=r"model\.num-heads is 3 and model\.embed-dim 16"):
        AggregatorConfig(embed_dim=16, num_heads=3)
