"""From a function of a module to an ONNX graph with named ends and any batch size."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn


class _Graph(nn.Module):
    """A function of a module, as a module."""

    def __init__(self, owner: nn.Module, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.owner, self.function = owner, function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


class GraphModule(nn.Module):
    """An exported graph as a module: float tensor in, its first output out; no gradient."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.session = onnxruntime.InferenceSession(path)
        # a task takes its device from its parameters, and the graph's own are in the session
        self.device_marker = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Run the graph on the CPU."""
        feed = {self.session.get_inputs()[0].name: x.contiguous().cpu().numpy()}
        return torch.from_numpy(self.session.run(None, feed)[0])


def write_graph(
    path: Path,
    owner: nn.Module,
    function: Callable[[Tensor], Any],
    feed: tuple[str, Sequence[int | None]],
    names: Sequence[str],
) -> None:
    """Export `function`, which uses the parameters of `owner`, as it answers in evaluation mode.

    Args:
        path: Where to write the graph.
        owner: The module whose parameters the function uses.
        function: From a float tensor to a tensor or a tuple of tensors.
        feed: Name and shape of the input, without its batch dimension; None: of any size.
        names: Names of the outputs.
    """
    name, shape = feed
    free = {axis + 1: f"any{axis}" for axis, size in enumerate(shape) if size is None}
    program = torch.onnx.export(
        _Graph(owner, function).eval(),
        (torch.zeros(2, *(3 if size is None else size for size in shape)),),
        dynamo=True,
        dynamic_shapes=({0: "batch"} | free,),
        input_names=[name],
        output_names=list(names),
        verbose=False,
    )
    assert program is not None
    program.save(path)
