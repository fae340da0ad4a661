"""The loss of distillation against its closed forms, and which runs may teach."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax

from assay.errors import ConfigError
from assay.runs.folder import Run
from assay.train.distill import DistillConfig, divergence, open_teacher


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_divergence_is_that_of_scipy_times_the_temperature_squared(temperature):
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(0, 3, (2, 7, 4))
    parts = rel_entr(softmax(teacher / temperature, 1), softmax(student / temperature, 1))
    expected = temperature**2 * parts.sum(1).mean()
    found = divergence(torch.tensor(student), torch.tensor(teacher), temperature)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert divergence(torch.tensor(teacher), torch.tensor(teacher), temperature).item() == (
        pytest.approx(0, abs=1e-6)
    )


def test_two_classes_have_a_closed_form():
    """A student without opinion beside p: log 2 less the entropy of p, at temperature 1."""
    p = 0.8
    teacher = torch.tensor([[math.log(p), math.log(1 - p)]])
    expected = math.log(2) + p * math.log(p) + (1 - p) * math.log(1 - p)
    assert divergence(torch.zeros(1, 2), teacher, 1.0).item() == pytest.approx(expected)


def test_at_high_temperature_the_gradient_is_that_of_matched_logits():
    """Hinton et al. 2015, equation 4: (z - v) / N for logits of mean zero, whatever the temperature."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 1, 5, generator=generator)
    student, teacher = student - student.mean(), teacher - teacher.mean()
    for temperature in (300.0, 900.0):
        z = student.clone().requires_grad_()
        divergence(z, teacher, temperature).backward()
        torch.testing.assert_close(z.grad, (student - teacher) / 5, atol=3e-3, rtol=0)


def test_settings_have_no_effect_without_a_teacher():
    assert DistillConfig().idle().keys() == {"weight", "temperature"}
    assert DistillConfig(teacher=Path("x")).idle() == {}


def test_what_is_no_finished_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"--distill.teacher: .* is no run; give the folder"):
        open_teacher(tmp_path)
    Run(tmp_path).note(state="stopped", task="casting")
    with pytest.raises(ConfigError, match="is stopped; run it to the end first"):
        open_teacher(tmp_path)
