"""The teacher: a mean of what the student was, the newest weighing most."""

import torch
from torch import nn


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move each parameter of the teacher to momentum * teacher + (1 - momentum) * student (Tarvainen and Valpola 2017)."""
    mine, theirs = dict(teacher.named_parameters()), dict(student.named_parameters())
    pairs = [(mine[name], theirs[name]) for name in mine]
    torch._foreach_lerp_([a for a, _ in pairs], [b for _, b in pairs], 1 - momentum)
