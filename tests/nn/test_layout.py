"""Networks whose weights lie channels last answer and learn as others do."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from assay.nn.layout import lay_channels_last


@pytest.mark.parametrize("chans", [1, 3, 8, 15, 16, 24])
@pytest.mark.parametrize("stride", [1, 2, (2, 1), 4])
@pytest.mark.parametrize("kernel", [1, 3])
def test_gradients_are_those_of_double_precision(chans, stride, kernel):
    """Of few channels oneDNN wrote a strided 1x1 convolution's past its memory."""
    torch.manual_seed(chans)
    plain = nn.Conv2d(chans, 12, kernel, stride)
    exact = copy.deepcopy(plain).double()
    net = lay_channels_last(nn.Sequential(plain))
    images = torch.randn(2, chans, 65, 64).contiguous(memory_format=torch.channels_last)
    given, wanted = images.clone().requires_grad_(), images.double().requires_grad_()
    answer, expected = net(given), exact(wanted)
    assert answer.shape == expected.shape
    answer.square().mean().backward()
    expected.square().mean().backward()
    pairs = [(answer, expected), (given.grad, wanted.grad)]
    pairs += [(plain.weight.grad, exact.weight.grad), (plain.bias.grad, exact.bias.grad)]
    for ours, double in pairs:
        torch.testing.assert_close(ours.double(), double, rtol=1e-3, atol=1e-5)


def test_other_layers_are_left_as_they_are():
    padded, grouped = nn.Conv2d(3, 6, 1, 2, padding=1), nn.Conv2d(32, 32, 1, 2)
    net = lay_channels_last(nn.Sequential(nn.Linear(3, 3), padded, grouped))
    assert padded.stride == grouped.stride == (2, 2)
    assert all(not layer._forward_pre_hooks for layer in net)


LARGE = """
import torch
from torch import nn
from assay.nn.layout import lay_channels_last
for chans in (1, 3, 8, 15):
    net = lay_channels_last(nn.Sequential(nn.Conv2d(chans, 12, 1, 2)))
    images = torch.randn(2, chans, 256, 256).contiguous(memory_format=torch.channels_last)
    net(images).square().mean().backward()
print("whole")
"""


def test_large_images_leave_memory_whole():
    """In a process of its own, which ended otherwise."""
    told = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True)
    assert (told.returncode, told.stdout) == (0, "whole\n"), told.stderr
