"""Borders of constant width are those by the size of the image, where sides are multiples of the strides."""

import copy
from functools import partial

import onnx
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import Conv2dSame
from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame
from timm.layers.std_conv import ScaledStdConv2dSame, StdConv2dSame
from torch import nn

from assay.nn.borders import fix_borders
from assay.nn.export import write_graph
from assay.nn.mask_net import MaskNetConfig, create_mask_net

sizes = st.tuples(st.integers(1, 5), st.integers(1, 5))


@given(sizes, st.tuples(st.integers(1, 4), st.integers(1, 4)), st.integers(1, 3), st.integers(1, 4))
def test_one_layer_answers_as_by_the_size_of_its_image(kernel, stride, dilation, times):
    plain = Conv2dSame(2, 3, kernel, stride, dilation=dilation)
    fixed = fix_borders(nn.Sequential(copy.deepcopy(plain)))
    images = torch.randn(1, 2, stride[0] * times, stride[1] * (times + 1))
    torch.testing.assert_close(fixed(images), plain(images))


pools = st.sampled_from(
    [MaxPool2dSame, AvgPool2dSame, partial(AvgPool2dSame, count_include_pad=False)]
)


@given(pools, sizes, st.tuples(st.integers(1, 4), st.integers(1, 4)), st.integers(1, 4))
def test_a_pool_answers_as_by_the_size_of_its_image(pool, kernel, stride, times):
    plain = pool(kernel, stride)
    fixed = fix_borders(nn.Sequential(copy.deepcopy(plain)))
    images = -1 - torch.rand(1, 2, stride[0] * times, stride[1] * (times + 1))
    torch.testing.assert_close(fixed(images), plain(images))


@given(
    st.sampled_from([StdConv2dSame, ScaledStdConv2dSame]),
    sizes,
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.integers(1, 4),
)
def test_a_layer_that_standardises_its_weights_answers_as_before(kind, kernel, stride, times):
    plain = kind(2, 3, kernel, stride)
    fixed = fix_borders(nn.Sequential(copy.deepcopy(plain)))
    assert not fixed[0].same_pad
    images = torch.randn(1, 2, stride[0] * times, stride[1] * (times + 1))
    torch.testing.assert_close(fixed(images), plain(images))


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_mixnet_s"])
def test_a_network_keeps_its_parameters_and_answers(name):
    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=3).eval()
    fixed = fix_borders(copy.deepcopy(plain))
    assert not any(isinstance(layer, Conv2dSame) for layer in fixed.modules())
    fixed.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(fixed(images), plain(images))


def test_no_border_of_an_exported_mask_network_depends_on_the_size_of_its_image(tmp_path):
    encoder, widths = "tu-tf_mobilenetv3_small_minimal_100", (16, 8)
    net = create_mask_net(MaskNetConfig(encoder=encoder, decoder_channels=widths), 1)
    write_graph(tmp_path / "net.onnx", net, net, ("tiles", (3, None, None)), ["logits"], 32)
    nodes = onnx.load(tmp_path / "net.onnx").graph.node
    assert sum(node.op_type == "Conv" for node in nodes) > 5
    pads = [node for node in nodes if node.op_type == "Pad"]
    computed = {out for node in nodes if node.op_type != "Constant" for out in node.output}
    assert not any(each.input[1] in computed for each in pads)


def test_other_layers_are_left_as_they_are():
    net = fix_borders(smp.Unet("resnet18", encoder_weights=None))
    assert not any(layer._forward_pre_hooks for layer in net.modules())
