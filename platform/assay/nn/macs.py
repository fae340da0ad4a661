"""Multiply-accumulates: what a pass through a network costs, and what of it is of the part that is trained."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class _Tally(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the operations of the modules that are entered."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.entered: list[nn.Module] = []
        self.total = self.trained = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            num = count(*args, **(kwargs or {}), out_val=outputs) // 2
            self.total += num
            self.trained += num if self._is_trained() else 0
        return outputs

    def _is_trained(self) -> bool:
        """Tell whether the innermost module that has parameters trains any of them."""
        for module in reversed(self.entered):
            needs = [parameter.requires_grad for parameter in module.parameters()]
            if needs:
                return any(needs)
        return False


@torch.no_grad()
def count_macs(forward: Callable[[Tensor], Any], image: Tensor) -> tuple[int, int]:
    """Count the multiply-accumulates of a pass, and those of modules that train a parameter.

    Those of convolutions and matrix products, attention among them, as published counts have them;
    what is done element by element is left out. Modules must be in eval mode.
    """
    tally = _Tally()

    def leave(*_: Any) -> None:
        tally.entered.pop()

    hooks = [
        register_module_forward_pre_hook(lambda module, _: tally.entered.append(module)),
        register_module_forward_hook(leave),
    ]
    is_fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # fused, it could not be counted
    try:
        with sdpa_kernel(SDPBackend.MATH), tally:
            forward(image)
    finally:
        torch.backends.mha.set_fastpath_enabled(is_fast)
        for hook in hooks:
            hook.remove()
    return tally.total, tally.trained
