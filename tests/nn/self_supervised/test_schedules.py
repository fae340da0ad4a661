"""Schedules at their ends and between, against DINOv2's arrays written out."""

import math

import pytest

from assay.errors import ConfigError
from assay.nn.self_supervised.schedules import RatesConfig, TeacherConfig, cosine


def official(start: float, end: float, total: int) -> list[float]:
    """A cosine schedule without warm-up, as its array of iterations."""
    return [end + 0.5 * (start - end) * (1 + math.cos(math.pi * i / total)) for i in range(total)]


def test_the_momentum_goes_to_1_by_half_a_cosine() -> None:
    config, total = TeacherConfig(), 50
    values = [config.momentum_at(step / total) for step in range(total)]
    assert values == pytest.approx(official(0.992, 1.0, total))
    assert config.momentum_at(1.0) == 1


def test_a_teacher_that_never_follows_is_refused() -> None:
    with pytest.raises(ConfigError, match="stays as it begins"):
        TeacherConfig(momentum=1.0)
    assert TeacherConfig(momentum=1.0, final_momentum=0.9).momentum_at(1.0) == 0.9


def test_the_temperature_rises_in_a_line_and_stays() -> None:
    config = TeacherConfig(warmup=0.3)
    assert [config.temperature_at(p) for p in (0.0, 0.15, 0.3, 1.0)] == pytest.approx(
        [0.04, 0.055, 0.07, 0.07]
    )
    assert TeacherConfig(warmup=0.0).temperature_at(0.0) == 0.07


def multipliers(progress: float, decay: float = 0.04) -> dict:
    names = ["student.head.prototypes."]
    return RatesConfig().multipliers("student.backbone", 12, names, decay, progress)


def test_weight_decay_rises_tenfold_by_half_a_cosine() -> None:
    for step, expected in enumerate(official(0.04, 0.4, 20)):
        for multiplier in multipliers(step / 20).values():
            assert 0.04 * multiplier.weight_decay == pytest.approx(expected)
    assert multipliers(0.5, decay=0.0)[""].weight_decay == 0


def test_blocks_nearer_the_input_learn_more_slowly() -> None:
    """DINOv2 counts what is before the blocks as layer 0, block i as i + 1, and the rest as 13."""
    rates = {name: multiplier.lr for name, multiplier in multipliers(0.5).items()}
    assert rates[""] == rates["student.head.prototypes."] == 1
    for block in range(12):
        assert rates[f"student.backbone.vit.blocks.{block}."] == pytest.approx(
            0.9 ** (13 - (block + 1))
        )
    for name in ("mask_token", "vit.cls_token", "vit.pos_embed"):
        assert rates[f"student.backbone.{name}"] == pytest.approx(0.9**13)
    assert rates["student.backbone.vit.patch_embed."] == pytest.approx(0.2 * 0.9**13)


def test_prototypes_rest_in_the_first_hundredth() -> None:
    assert multipliers(0.0)["student.head.prototypes."].lr == 0
    assert multipliers(0.0099)["student.head.prototypes."].lr == 0
    assert multipliers(0.01)["student.head.prototypes."].lr == 1


def test_a_cosine_passes_its_middle_halfway() -> None:
    assert cosine(2.0, 4.0, 0.5) == pytest.approx(3.0)
