"""The reference's recipes against a table of its parameters, written out here a second time."""

from dataclasses import fields
from typing import Any

import pytest

from assay.config import Settings
from assay.train.recipes import reference_recipes

ALL: dict[str, Any] = {
    "patches.image_px": 2550,
    "patches.overview_px": 850,
    "patches.patch_px": 448,
    "patches.clahe_clip": 3.0,
    "patches.clahe_grid": 64,
    "patches.normalise": "image",
    "model.mode": "dps",
    "model.k": 8,
    "model.spacing": 0.0,
    "model.trunk": "resnet18",
    "model.scorer_weights": "hub",
    "model.estimator": "plain",
    "model.num_noise": 500,
    "model.sigma": 0.01,
    "model.sigma_final": 1e-5,
    "model.warmup": 0.0,
    "model.alone": 0.0,
    "model.backbone": "eva02",
    "model.weights": "hub",
    "model.norm": "batch",
    "model.trainable_blocks": -1,
    "model.head": "linear",
    "model.embed_dim": 1024,
    "model.num_layers": 2,
    "model.num_heads": 16,
    "model.d_inner": 4096,
    "model.dropout": 0.1,
    "model.attn_dropout": 0.1,
    "model.positions": True,
    "model.label_smoothing": 0.0,
    "model.backbone_lr": 1.0,
    "model.backbone_frozen": 0.0,
    "model.aggregator_lr": 1.0,
    "model.scorer_lr": 1.0,
    "train.epochs": 50,
    "train.batch_size": 3 * 8 * 6,
    "train.precision": "fp16",
    "train.val_every": 5,
    "optim.optimizer": "lamb",
    "optim.lr": 5e-4,
    "optim.weight_decay": 0.01,
    "optim.decays": "all",
    "optim.schedule": "onecycle",
    "optim.warmup": 0.3,
    "optim.start_factor": 0.04,
    "optim.final_factor": 4e-5,
    "optim.grad_clip": 1.0,
}
README: dict[str, Any] = {
    "optim.optimizer": "adamw",
    "augment.hflip": 0.5,
    "augment.vflip": 0.5,
    "augment.translate": 0.25,
    "augment.rotation_deg": 180.0,
    "augment.rotation_p": 0.5,
    "augment.exposure_p": 0.3,
    "augment.brightness_low": 0.75,
    "augment.brightness_high": 1.25,
    "augment.contrast_low": 0.75,
    "augment.contrast_high": 1.25,
    "augment.gamma_low": 0.5,
    "augment.gamma_high": 2.0,
    "augment.resample_p": 0.1,
    "augment.resample_low": 0.75,
    "augment.resample_high": 1.25,
    "augment.noise_p": 0.5,
}
MAIN: dict[str, Any] = {
    "model.label_smoothing": 0.1,
    "augment.hflip": 0.5,
    "augment.vflip": 0.5,
    "augment.rotation_deg": 5.0,
    "augment.rotation_p": 1.0,
    "augment.affine_translate": 0.05,
    "augment.scale_low": 0.5,
    "augment.scale_high": 1.5,
    "augment.scale_p": 1.0,
    "augment.exposure_p": 1.0,
    "augment.brightness_low": 0.7,
    "augment.brightness_high": 1.3,
    "augment.contrast_low": 0.7,
    "augment.contrast_high": 1.3,
    "augment.saturation_low": 0.7,
    "augment.saturation_high": 1.3,
    "augment.noise_p": 0.25,
    "augment.translate": 0.1,
}
SWEEP: dict[str, Any] = {
    "patches.clahe_grid": 128,
    "train.epochs": 30,
    "optim.schedule": "exponential",
    "optim.warmup": 0.0,
    "optim.final_factor": 0.99**30,
    "augment.hflip": 0.5,
    "augment.vflip": 0.5,
    "augment.translate": 0.25,
}
DINOV3: dict[str, Any] = {
    "model.backbone": "dinov3-vits16",
    "model.backbone_lr": 5e-6 / 5e-4,
    "model.aggregator_lr": 1e-4 / 5e-4,
}
DEVICES = 24
TABLE = {"readme": README, "main": MAIN, "sweep": SWEEP, "dinov3": MAIN | DINOV3}
FREE = {
    # of the judging alone, of what a sweep sets (strength of noise, and ranges of what is drawn with
    # probability 0), or without effect beside the others
    *(
        "patches.fit",
        "patches.mean",
        "patches.std",
        "patches.bright",
        "model.warmup_k",
        "model.guide",
    ),
    *("train.eval_batch_size", "train.seed", "train.select", "train.patience"),
}


@pytest.mark.parametrize("name", TABLE)
def test_a_recipe_is_the_references_in_every_parameter(name):
    recipe = reference_recipes()[name]
    expected, left = ALL | TABLE[name], set(FREE)
    for section in fields(recipe):
        settings: Settings = getattr(recipe, section.name)
        idle = settings.idle()
        default = type(settings)()
        for field in fields(settings):
            key, value = f"{section.name}.{field.name}", getattr(settings, field.name)
            if key in expected:
                assert value == pytest.approx(expected.pop(key)), key
            elif key not in left and field.name not in idle:
                assert section.name == "augment", key
                assert value == getattr(default, field.name), key
    assert not expected
    assert recipe.train.eval_batch_size * DEVICES <= recipe.train.batch_size  # as few as are learnt
