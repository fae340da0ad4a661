"""Which blocks networks have, and that recomputing them changes memory and nothing else."""

import copy
from functools import partial

import pytest
import timm
import torch
from torch import nn

from assay.nn.blocks import blocks_of, compile_blocks, recompute


@pytest.mark.parametrize(
    ("name", "num"),
    [
        ("eva02_large_patch14_448.mim_m38m_ft_in22k_in1k", 24),
        ("vit_small_patch16_dinov3", 12),
        ("convnext_xxlarge", 3 + 4 + 30 + 3),
        ("resnet18", 8),
    ],
)
def test_blocks_are_those_of_the_architecture(name, num):
    with torch.device("meta"):
        model = timm.create_model(name)
    blocks = blocks_of(model)
    assert len(blocks) == num
    inside = sum(p.numel() for block in blocks for p in block.parameters())
    assert inside > 0.9 * sum(p.numel() for p in model.parameters())


def test_blocks_that_rest_are_sharded_and_not_recomputed():
    net = nn.Sequential(Block(), Block(), Block())
    net[0].requires_grad_(False)
    assert blocks_of(net) == list(net)
    assert recompute(net) == 2


def test_layers_and_single_blocks_are_none():
    linear = [nn.Linear(2, 2), nn.Linear(2, 2)]
    assert not blocks_of(nn.Sequential(*linear))
    assert not blocks_of(nn.ModuleList([nn.Sequential(nn.Linear(2, 2))]))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(16, 64), nn.BatchNorm1d(64), nn.GELU(), nn.Dropout(0.3), nn.Linear(64, 16)
        )

    def forward(self, x):
        return x + self.layers(x)


def learnt(net, seed=0):
    """Gradients, buffers, and the bytes kept for the backward pass."""
    sizes: dict[int, int] = {}

    def note(tensor):
        sizes[tensor.data_ptr()] = tensor.nbytes
        return tensor

    torch.manual_seed(seed)
    x = torch.randn(32, 16)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = net(x).square().mean()
    loss.backward()
    return (
        [parameter.grad for parameter in net.parameters()],
        [buffer.clone() for buffer in net.buffers()],
        sum(sizes.values()),
    )


def test_recomputed_blocks_learn_the_same_from_less_memory():
    torch.manual_seed(0)
    plain = nn.Sequential(*(Block() for _ in range(6)))
    other = copy.deepcopy(plain)
    assert recompute(other) == 6
    gradients, buffers, kept = learnt(plain)
    again, their_buffers, less = learnt(other)
    assert all(map(torch.equal, gradients, again))
    assert all(map(torch.equal, buffers, their_buffers))  # running statistics count a batch once
    assert all(block.layers[1].momentum == 0.1 for block in other)
    assert less < kept / 5
    assert other.state_dict().keys() == plain.state_dict().keys()


def test_a_copy_of_a_recomputed_network_computes_with_its_own_weights():
    net = nn.Sequential(Block(), Block())
    recompute(net)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    x = torch.ones(4, 16)
    assert torch.equal(twin(x), x)
    assert not torch.equal(net(x), x)


# torch's compiler warns of much that it meets on its way
@pytest.mark.filterwarnings("ignore")
def test_compiled_blocks_learn_the_same_recomputed_or_not(monkeypatch):
    # what is traced is run as it is: no C++ compiler, and no minutes
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch.manual_seed(0)
    plain = nn.ModuleDict({"body": nn.Sequential(Block(), Block()), "head": nn.Linear(16, 3)})
    for part in plain.modules():
        if isinstance(part, nn.Dropout):  # a compiled one draws otherwise
            part.p = 0.0
    compiled = copy.deepcopy(plain)
    both = copy.deepcopy(plain)
    recompute(both["body"])
    for net in (compiled, both):
        assert compile_blocks(net) == 3
        assert net.state_dict().keys() == plain.state_dict().keys()
    torch._dynamo.utils.counters.clear()
    expected, *others = (learnt(nn.Sequential(*net.values())) for net in (plain, compiled, both))
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs >= 2, "nothing was compiled"
    for gradients, buffers, _ in others:
        for ours, theirs in zip(gradients + buffers, expected[0] + expected[1], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
