"""From a function of a module to an ONNX graph with named ends and any batch size."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as onnxruntime_errors
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from assay.errors import BundleError, ConfigError

_REFUSALS = (
    onnxruntime_errors.Fail,
    onnxruntime_errors.InvalidArgument,
    onnxruntime_errors.InvalidGraph,
    onnxruntime_errors.NotImplemented,
    onnxruntime_errors.RuntimeException,
)
"""What ONNX Runtime says of a graph that it does not run."""


class _Graph(nn.Module):
    """A function of a module, as a module that can be exported."""

    def __init__(self, owner: nn.Module, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.owner, self.function = owner, function

    def forward(self, x: Tensor) -> Any:
        with _AttentionOfFourAxes():
            return self.function(x)


class _AttentionOfFourAxes(TorchFunctionMode):
    """Gives attention what it takes with four axes, as the exporter demands; Hiera, NesT and SAM's networks have five or three."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        is_attention = func is scaled_dot_product_attention
        if not is_attention or args[0].ndim == 4:
            return func(*args, **kwargs)
        batch = args[0].shape[:-2]
        mask = args[3] if len(args) > 3 else kwargs.pop("attn_mask", None)
        if mask is not None:
            mask = self._four(mask.expand(*batch, *mask.shape[-2:]))
        answer = func(*map(self._four, args[:3]), mask, *args[4:], **kwargs)
        return answer.reshape(*batch, *answer.shape[-2:])

    @staticmethod
    def _four(values: Tensor) -> Tensor:
        return values.flatten(1, -3) if values.ndim > 4 else values[:, None]


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


@torch.no_grad()
def check_any_size(net: nn.Module, stride: int, option: str) -> None:
    """Refuse a network of images that no graph for images of any size can be made of.

    Args:
        net: from images (n 3 h w); left in training mode.
        stride: what sides are multiples of.
        option: what the user gives instead.

    Raises:
        ConfigError: it takes one size alone, or pools to a grid, which a graph does for one size alone.
    """
    reason = ""
    for module in net.modules():
        if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size not in (1, (1, 1)):
            reason = f"it pools to a grid of {module.output_size}"
    net.eval()
    try:
        net(torch.zeros(1, 3, 2 * stride, 3 * stride))
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0][:120]
    net.train()
    if reason:
        raise ConfigError(
            f"The network does not take images of any size ({reason}); give {option}, or another network."
        )


def write_graph(
    path: Path,
    owner: nn.Module,
    function: Callable[[Tensor], Any],
    feed: tuple[str, Sequence[int | None]],
    names: Sequence[str],
    stride: int = 1,
) -> None:
    """Export `function`, which uses the parameters of `owner`, as it answers in evaluation mode.

    Args:
        path: Where to write the graph.
        owner: The module whose parameters the function uses.
        function: From a float tensor to a tensor or a tuple of tensors.
        feed: Name and shape of the input, without its batch dimension; None: of any size.
        names: Names of the outputs.
        stride: Sizes that are free are multiples of this.

    Raises:
        BundleError: the exporter or ONNX Runtime does not take the network.
    """
    name, shape = feed
    free = {axis + 1: f"any{axis}" for axis, size in enumerate(shape) if size is None}
    # sizes of which no two are equal, lest the exporter takes them for one
    tried = [(3 + axis) * stride if size is None else size for axis, size in enumerate(shape)]
    try:
        program = torch.onnx.export(
            _Graph(owner, function).eval(),
            (torch.zeros(2, *tried),),
            dynamo=True,
            dynamic_shapes=({0: "batch"} | free,),
            input_names=[name],
            output_names=list(names),
            verbose=False,
        )
        assert program is not None
        program.save(path)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        onnxruntime.InferenceSession(path, options)
    except (torch.onnx.OnnxExporterError, *_REFUSALS) as error:
        raise BundleError(
            f"This network cannot be written as a graph ({_first_cause(error)}), so that it cannot ship; what was trained and judged is kept. Take another backbone or encoder to ship one."
        ) from error


def _first_cause(error: BaseException) -> str:
    """Return the line that says what was wrong first, of which the others tell where."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:200] or type(error).__name__
