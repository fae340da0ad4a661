"""Recipes of patch classification: the source-identification reference in every parameter, and those for images of one's own.

`readme` is as its README states it, `main` and `sweep` as its two scripts set it, `dinov3` is `main` with its DINOv3
backbone and three learning rates. Two faults of the scripts are not repeated: the main script never anneals sigma
and steps OneCycle once in five epochs. Where Assay differs by design: patches are chosen without noise when judged, val
and never test chooses, sigma and rates fall by update, and a batch is what 3 nodes of 8 GPUs hold together (6 images each).
Which of its three rates is whose is not stated: the lowest is taken for the backbone, the next for the
transformer. Noise has strength 0 until a sweep sets it.
"""

from dataclasses import dataclass, replace

from assay.data.inputs.augment import AugmentConfig
from assay.data.inputs.patches import PatchConfig
from assay.nn.optim import OptimConfig
from assay.train.patch_network import PatchClassificationConfig, PatchModelConfig
from assay.train.task_config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class PatchRecipe:
    """All of a recipe but its data."""

    patches: PatchConfig
    augment: AugmentConfig
    model: PatchModelConfig
    train: TrainConfig
    optim: OptimConfig


# what the recipes have in common: input, model, run and update rule; then the pipelines of each
PATCHES = PatchConfig(
    image_px=2550,
    overview_px=850,
    patch_px=448,
    clahe_clip=3.0,
    clahe_grid=64,
    normalise="image",
)
MODEL = PatchModelConfig(
    k=8,
    trunk="resnet18",
    scorer_weights="hub",
    estimator="plain",
    num_noise=500,
    sigma=0.01,
    sigma_final=1e-5,
    warmup=0.0,
    warmup_k=8,
    alone=0.0,
    guide=0.0,
    backbone="eva02",
    weights="hub",
    norm="batch",
    head="linear",
    embed_dim=1024,
    num_layers=2,
    num_heads=16,
    d_inner=4096,
    dropout=0.1,
    attn_dropout=0.1,
    positions=True,
    label_smoothing=0.0,
)
# judged as many at a time as a device learns from, for in float32 144 took more memory than to learn
TRAIN = TrainConfig(epochs=50, batch_size=144, eval_batch_size=6, precision="fp16", val_every=5)
OPTIM = OptimConfig(
    optimizer="lamb",
    lr=5e-4,
    weight_decay=0.01,
    decays="all",
    schedule="onecycle",
    warmup=0.3,
    start_factor=1 / 25,
    final_factor=1 / 25 / 1000,
    grad_clip=1.0,
)
README = AugmentConfig(
    hflip=0.5,
    vflip=0.5,
    translate=0.25,
    rotation_deg=180.0,
    rotation_p=0.5,
    exposure_p=0.3,
    brightness_low=0.75,
    brightness_high=1.25,
    contrast_low=0.75,
    contrast_high=1.25,
    gamma_low=0.5,
    gamma_high=2.0,
    resample_p=0.1,
    resample_low=0.75,
    resample_high=1.25,
    noise_p=0.5,
)
MAIN = AugmentConfig(
    hflip=0.5,
    vflip=0.5,
    rotation_deg=5.0,
    rotation_p=1.0,
    affine_translate=0.05,
    scale_low=0.5,
    scale_high=1.5,
    scale_p=1.0,
    exposure_p=1.0,
    brightness_low=0.7,
    brightness_high=1.3,
    contrast_low=0.7,
    contrast_high=1.3,
    saturation_low=0.7,
    saturation_high=1.3,
    noise_p=0.25,
    translate=0.1,
)
SWEEP = AugmentConfig(
    hflip=0.5,
    vflip=0.5,
    translate=0.25,
    # what its sweeps turn on by contrast_mod, scale_mod and sensor_noise: its classes' own ranges
    brightness_low=0.5,
    brightness_high=1.5,
    contrast_low=0.5,
    contrast_high=1.5,
    gamma_low=0.5,
    gamma_high=2.0,
    resample_low=0.5,
    resample_high=1.5,
    noise_p=0.25,
)


def reference_recipes() -> dict[str, PatchRecipe]:
    """Return the recipes by name."""
    readme = PatchRecipe(
        patches=PATCHES,
        augment=README,
        model=MODEL,
        train=TRAIN,
        optim=replace(OPTIM, optimizer="adamw"),
    )
    main = replace(readme, augment=MAIN, model=replace(MODEL, label_smoothing=0.1), optim=OPTIM)
    epochs = 30
    falling = replace(
        OPTIM, schedule="exponential", warmup=0.0, start_factor=0.04, final_factor=0.99**epochs
    )
    sweep = replace(
        readme,
        patches=replace(PATCHES, clahe_grid=128),
        augment=SWEEP,
        train=replace(TRAIN, epochs=epochs),
        optim=falling,
    )
    rates = replace(main.model, backbone="dinov3-vits16", backbone_lr=0.01, aggregator_lr=0.2)
    return {"readme": readme, "main": main, "sweep": sweep, "dinov3": replace(main, model=rates)}


def recipe_of_parts(demo: PatchClassificationConfig) -> PatchRecipe:
    """Return the recipe for photographs of parts: the demo's way to learn, at full resolution, on pretrained weights.

    These stay as they are until the scorer decides: most random patches show nothing, and what they teach
    a backbone spoils its features before the few others can use them.
    """
    model = replace(
        demo.model,
        k=8,
        warmup_k=16,
        trunk="resnet18",
        scorer_weights="hub",
        backbone="convnext_tiny.in12k_ft_in1k",
        weights="hub",
        norm="frozen",
        backbone_lr=0.1,
        backbone_frozen=demo.model.warmup,
        scorer_lr=0.3,
        embed_dim=256,
        d_inner=512,
        dropout=0.1,
    )
    return PatchRecipe(
        patches=PatchConfig(clahe_clip=0.0, normalise="imagenet"),
        augment=AugmentConfig(hflip=0.5, vflip=0.5, translate=0.1),
        model=model,
        train=TrainConfig(
            epochs=30, batch_size=8, eval_batch_size=8, patience=5, min_improvement=0.002
        ),
        optim=replace(demo.optim, lr=1e-3),
    )


def recipe_of_files(demo: PatchClassificationConfig) -> PatchRecipe:
    """Return the recipe for small images in folders by class: a few patches as large as what the weights have seen."""
    large = recipe_of_parts(demo)
    return replace(
        large,
        patches=replace(large.patches, image_px=320, overview_px=160, patch_px=224),
        model=replace(large.model, k=4, warmup_k=4),
        train=replace(large.train, batch_size=16, eval_batch_size=16),
    )
