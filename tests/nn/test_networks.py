"""Networks by name: sizes, features as the libraries have them, blocks in order, weights."""

import hashlib
from urllib.error import URLError

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import nn

import assay.fetch
from assay.errors import ConfigError
from assay.nn.networks import NetworkConfig, create_network, is_torchvision

MILLIONS = {
    "alexnet": 57.0,
    "resnet18": 11.2,
    "efficientnet_v2_s": 20.2,
    "convnext_tiny": 27.8,
    "vit_b_16": 85.8,
    "swin_t": 27.5,
    "dino_vits8": 21.7,
}
"""Parameters with a head of two classes, as published beside the source's weights."""

WIDTHS = {
    "alexnet": 4096,
    "resnet18": 512,
    "efficientnet_v2_s": 1280,
    "convnext_tiny": 768,
    "vit_b_16": 768,
    "swin_t": 768,
    "dino_vits8": 384,
}

SMALL = {
    "alexnet": ("classifier.6", False),
    "resnet18": ("fc", True),
    "efficientnet_v2_s": ("classifier.1", True),
    "convnext_tiny": ("classifier.2", False),
    "vit_b_16": ("heads.head", False),
    "swin_t": ("head", True),
    "shufflenet_v2_x0_5": ("fc", True),
    "regnet_y_400mf": ("fc", True),
    "mobilenet_v3_small": ("classifier.3", False),
}
"""The last linear layer of torchvision's nets, and whether it sees the mean of the last maps."""


@pytest.mark.parametrize("name", MILLIONS)
def test_sizes_are_those_of_the_published_classifiers(name):
    with torch.device("meta"):
        net = create_network(NetworkConfig(network=name), 224, 224)
        head = nn.Linear(WIDTHS[name], 2)
    total = sum(p.numel() for module in (net, head) for p in module.parameters())
    assert total / 1e6 == pytest.approx(MILLIONS[name], abs=0.1)


@pytest.mark.parametrize("name", SMALL)
def test_torchvision_with_its_last_layer_is_the_features_with_a_head(name):
    torch.manual_seed(0)
    config = NetworkConfig(network=name)
    network = config.build(64, 64).eval()
    options = {"image_size": 64} if name == "vit_b_16" else {}
    whole = torchvision.models.get_model(name, num_classes=3, **options).eval()
    own, last = network.state_dict(), SMALL[name][0]
    state = {key.removeprefix("net."): value for key, value in own.items()}
    misfit = whole.load_state_dict(state, strict=False)
    assert set(misfit.missing_keys) == {f"{last}.weight", f"{last}.bias"}
    assert not misfit.unexpected_keys
    head = whole.get_submodule(last)
    nn.init.normal_(head.weight)
    assert head.in_features == network.num_features == WIDTHS.get(name, network.num_features)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        features = network(images)
        assert (features.dim() == 4) == network.is_mean == SMALL[name][1]
        assert features[0].numel() == network.num_flat
        logits = head(features.mean((2, 3)) if network.is_mean else features)
        torch.testing.assert_close(logits, whole(images), rtol=1e-5, atol=1e-4)
        maps = network.maps(images)
    assert maps.dim() == 4
    assert maps.shape[0] == 2


@pytest.mark.parametrize(
    ("name", "is_mean"),
    [
        ("dino_vits8", False),  # the class token
        ("test_resnet", True),
        ("test_vit", False),
        ("lcnet_035", False),  # layers behind the mean
        ("swin_tiny_patch4_window7_224", True),  # maps with channels last
        ("vit_base_patch32_siglip_gap_256", True),  # tokens alone
    ],
)
def test_features_of_timm_are_its_own(name, is_mean):
    torch.manual_seed(0)
    network = NetworkConfig(network=name).build(64, 64).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        features, maps = network(images), network.maps(images)
        pooled = features.mean((2, 3)) if network.is_mean else features
        torch.testing.assert_close(pooled, network.net(images), rtol=1e-3, atol=1e-4)
    assert network.is_mean == is_mean
    assert network.num_features == pooled.shape[1]
    assert maps.dim() == 4


def test_a_net_that_does_not_tell_places_has_features_and_no_maps():
    network = NetworkConfig(network="gmlp_ti16_224").build(64, 64).eval()
    assert not network.is_mean
    assert network(torch.rand(2, 3, 64, 64)).shape == (2, network.num_features)
    with pytest.raises(ConfigError, match="no maps of it; take another network"):
        network.maps(torch.rand(2, 3, 64, 64))


def test_tokens_keep_their_places():
    """What changes in one patch of the image changes the map most at its place."""
    torch.manual_seed(0)
    images = torch.zeros(1, 3, 64, 96)
    changed = images.clone()
    changed[:, :, 16:32, 64:80] = 3
    for name, size in (("test_vit", (64, 96)), ("vit_b_16", (64, 64))):
        network = NetworkConfig(network=name).build(*size).eval()
        maps = [network.maps(i[..., -size[1] :]) for i in (images, changed)]
        change = (maps[0] - maps[1]).abs().sum(1)[0]
        column = (64 - (96 - size[1])) // 16
        assert change.shape == (size[0] // 16, size[1] // 16)
        assert change.argmax().item() == change.shape[1] + column


def order_of_use(network: nn.Module, names: list[str]) -> list[str]:
    """Order parameters by when a pass first reads them."""
    parameters = dict(network.named_parameters())
    used: dict[str, None] = {}
    ids = {id(p): name for name, p in parameters.items()}

    class Reads(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            for value in (*args, *(kwargs or {}).values()):
                if id(value) in ids:
                    used.setdefault(ids[id(value)])
            return function(*args, **(kwargs or {}))

    with torch.no_grad(), Reads():
        network(torch.rand(1, 3, 64, 64))
    assert set(used) <= set(names)
    return list(used)


BLOCKS = {
    "luna": 1 + 4,
    "alexnet": 5 + 2,
    "resnet18": 1 + 8,
    "efficientnet_v2_s": 1 + 40 + 1,
    "convnext_tiny": 1 + 18 + 3,
    "vit_b_16": 1 + 12,
    "swin_t": 1 + 12 + 3,
    "dino_vits8": 1 + 12,
    "shufflenet_v2_x0_5": 1 + 16 + 1,
    "mobilenet_v3_small": 1 + 11 + 1,
    "regnet_y_400mf": 1 + 16,
    "test_resnet": 1 + 4,
}
"""By the papers' tables: a stem, the units, and what stands between or behind them."""


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_hold_each_parameter_once_in_the_order_of_use(name):
    network = NetworkConfig(network=name).build(64, 64).eval()
    blocks = network.blocks()
    names = [key for block in blocks for key in block]
    assert sorted(names) == sorted(key for key, _ in network.named_parameters())
    place = {key: index for index, block in enumerate(blocks) for key in block}
    used = [place[key] for key in order_of_use(network, names)]
    assert used == sorted(used)
    assert set(used) == set(range(len(blocks)))
    assert len(blocks) == BLOCKS[name]


def test_names_mean_torchvision_where_the_source_has_it_so_and_where_timm_has_none():
    names = ("alexnet", "resnet18", "vit_b_16", "swin_v2_t", "mobilenet_v2")
    assert all(is_torchvision(name) for name in names)
    names = ("resnet34", "dino_vits8", "luna", "squeezenet1_0", "resnet18.a1_in1k", "convnext_atto")
    assert not any(is_torchvision(name) for name in names)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit"])
def test_dropout_leaves_out_whole_features(name):
    torch.manual_seed(0)
    network = NetworkConfig(network=name, dropout=0.5).build(64, 64)
    network.net.eval()
    assert network.is_mean == (name == "test_efficientnet")
    dropped = (network(torch.rand(8, 3, 64, 64)) == 0).float().flatten(2 if network.is_mean else 1)
    share = dropped.mean(-1) if network.is_mean else dropped
    assert set(share.unique().tolist()) == {0, 1}
    assert share.mean().item() == pytest.approx(0.5, abs=0.1)


def test_what_cannot_be_built_is_refused_in_a_sentence():
    for name, size, words in (
        ("lunna", (64, 64), r"no network 'lunna'; the closest are luna, "),
        ("squeezenet1_0", (64, 64), "no network 'squeezenet1_0'"),
        ("vit_b_16", (300, 300), r"vit_b_16 does not take images of 300 x 300 px .* 224"),
        ("vit_b_16", (224, 112), r"takes square ones\); set --image.height-px"),
        ("alexnet", (16, 16), "alexnet does not take images of 16 x 16 px"),
        ("luna", (8, 8), "luna does not take images of 8 x 8 px"),
    ):
        with pytest.raises(ConfigError, match=words):
            NetworkConfig(network=name).build(*size)
    with pytest.raises(ConfigError, match=r"published weights are for 224 x 224 px"):
        NetworkConfig(network="vit_b_16", weights="hub").build(96, 96)
    with pytest.raises(ConfigError, match=r"norm frozen .* with the network luna"):
        NetworkConfig(norm="frozen").build(64, 64)


def test_weights_come_from_files_of_torchvision_and_timm(tmp_path):
    torch.manual_seed(0)
    images = torch.rand(2, 3, 64, 64)
    for name, whole in (
        ("resnet18", torchvision.models.resnet18()),
        ("test_vit", timm.create_model("test_vit", img_size=64)),
    ):
        torch.save(whole.state_dict(), tmp_path / "a.pth")
        safetensors.torch.save_file(whole.state_dict(), tmp_path / "a.safetensors")
        for file in ("a.pth", "a.safetensors"):
            network = NetworkConfig(network=name, weights=str(tmp_path / file)).build(64, 64).eval()
            head = whole.get_submodule("fc" if name == "resnet18" else "head")
            with torch.no_grad():
                features = network(images)
                features = features.mean((2, 3)) if network.is_mean else features
                torch.testing.assert_close(
                    head(features), whole.eval()(images), rtol=1e-4, atol=1e-4
                )
    with pytest.raises(ConfigError, match=r"does not hold the weights of alexnet"):
        NetworkConfig(network="alexnet", weights=str(tmp_path / "a.pth")).build(64, 64)


def test_weights_come_from_an_uri_when_their_sha256_is_right(tmp_path, monkeypatch):
    monkeypatch.setattr(assay.fetch, "CACHE", tmp_path / "cache")
    whole = torchvision.models.resnet18()
    torch.save(whole.state_dict(), tmp_path / "a.pth")
    sha256 = hashlib.sha256((tmp_path / "a.pth").read_bytes()).hexdigest()
    for weights in (str(tmp_path / "a.pth"), (tmp_path / "a.pth").as_uri()):
        settings = {"network": "resnet18", "weights": weights}
        network = NetworkConfig(**settings, weights_sha256=sha256).build(64, 64)
        torch.testing.assert_close(network.net.conv1.weight, whole.conv1.weight)
        with pytest.raises(
            ConfigError, match=rf"{sha256} and --model.weights-sha256 asks for ffff"
        ):
            NetworkConfig(**settings, weights_sha256="f" * 64).build(64, 64)
    with pytest.raises(ConfigError, match=r"by its SHA-256 only.*--model.weights-sha256"):
        NetworkConfig(network="resnet18", weights="https://host/a.pth").build(64, 64)
    with pytest.raises(ConfigError, match=r"weights-sha256 is 'abc'; give 64 digits"):
        NetworkConfig(weights_sha256="abc")
    assert list(NetworkConfig(weights="hub").idle()) == ["weights_sha256"]


def test_weights_of_another_network_are_named_with_what_differs(tmp_path):
    state = torchvision.models.resnet18().state_dict()
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ConfigError) as refusal:
        NetworkConfig(network="alexnet", weights=str(tmp_path / "a.pth")).build(64, 64)
    assert "a.pth does not hold the weights of alexnet: 0 of its 14 tensors fit" in str(
        refusal.value
    )
    assert "14 missing (features.0.weight, features.0.bias, " in str(refusal.value)
    assert "122 not its own (conv1.weight, bn1.weight, bn1.bias, ...)" in str(refusal.value)
    state["conv1.weight"] = torch.rand(64, 1, 7, 7)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ConfigError) as refusal:
        NetworkConfig(network="resnet18", weights=str(tmp_path / "a.pth")).build(64, 64)
    shapes = "(conv1.weight: 64x1x7x7 float32 for 64x3x7x7 float32)"
    assert f"119 of its 120 tensors fit, 1 of another shape or type {shapes}" in str(refusal.value)


def test_an_unreachable_hub_of_torchvision_says_what_to_do(tmp_path, monkeypatch):
    published = torchvision.models.AlexNet_Weights.IMAGENET1K_V1
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "*")
    config = NetworkConfig(network="alexnet", weights="hub")

    def answer(error):
        def download(*args, **kwargs):
            raise error

        monkeypatch.setattr(torch.hub, "download_url_to_file", download)

    for error in (URLError("no route"), RuntimeError("invalid hash value")):
        answer(error)
        with pytest.raises(
            ConfigError, match=r"cannot be fetched from \S+alexnet\S+ .*FILE, or none"
        ):
            config.fetch()
    assert published.url.endswith("alexnet-owt-7be5be79.pth")
    with pytest.raises(ConfigError, match="no weights IMAGENET1K_V1 of vit_h_14"):
        NetworkConfig(network="vit_h_14", weights="hub").fetch()
    with pytest.raises(ConfigError, match="no pretrained weights for luna"):
        NetworkConfig(weights="hub").fetch()


def test_weights_that_torchvision_has_fetched_are_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    whole = torchvision.models.shufflenet_v2_x0_5()
    name = torchvision.models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    (tmp_path / "checkpoints").mkdir()
    torch.save(whole.state_dict(), tmp_path / "checkpoints" / name)
    network = NetworkConfig(network="shufflenet_v2_x0_5", weights="hub").build(64, 64)
    torch.testing.assert_close(network.net.conv5[0].weight, whole.conv5[0].weight)
