"""Folders as published sets lay them out."""

from assay.data.data_config import DataConfig
from assay.data.masks.rules import MaskConfig

MVTEC_IMAGES = DataConfig(
    patterns=("{kind}/{name}",), leave_out=("ground_truth",), label="", domains=("kind",)
)
"""A product of MVTec AD: train/good, test/<kind>."""

MVTEC_MASKS = MaskConfig(files="ground_truth/{parent}/{name}_mask.png", missing="empty")
"""Its masks: ground_truth/<kind>; good parts have none."""
