"""How often a training step waits for the device, counted on a CPU. Used by the tests of both stages."""

import sys
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "bincount", "equal"}
"""Operators whose answer or size has to reach the host: on a GPU each waits for everything before it."""
COPYING = (Tensor.tolist, Tensor.numpy, Tensor.cpu)
"""Ways to the host that no operator tells of."""


def caller(frame: FrameType | None) -> str:
    """The innermost function of ours that waits; of torch's optimizers, which count on the host, only the word."""
    while frame:
        if "/torch/optim/" in frame.f_code.co_filename:
            return "optimizer"
        if "/pipeline/" in frame.f_code.co_filename:
            return frame.f_code.co_name
        frame = frame.f_back
    return "test"


class OperatorWaits(TorchDispatchMode):
    """Counts, by caller, the operators that a GPU would be waited for at."""

    def __init__(self) -> None:
        super().__init__()
        self.by_caller: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masks = func.overloadpacket.__name__ in {"index", "index_put", "index_put_"} and any(
            isinstance(leaf, Tensor) and leaf.dtype == torch.bool for leaf in tree_leaves(args[1])
        )
        if masks or func.overloadpacket.__name__ in WAITING:
            self.by_caller[caller(sys._getframe(1))] += 1
        return func(*args, **(kwargs or {}))


class CopyWaits(TorchFunctionMode):
    """Counts, by caller, what waits in copying: to the host always, to a device unless asked not to."""

    def __init__(self, counter: Counter[str]) -> None:
        super().__init__()
        self.by_caller = counter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        frame = sys._getframe(1)
        ours = "/pipeline/" in frame.f_code.co_filename  # torch's own calls of `to` stay on their device
        if func in COPYING or ours and moves(func, args, kwargs or {}):
            self.by_caller[caller(frame)] += 1
        return func(*args, **(kwargs or {}))


def moves(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether this call copies to a device and waits until that is done."""
    if func is torch.tensor:
        return "device" in kwargs
    if func is not Tensor.to or kwargs.get("non_blocking"):
        return False
    return any(isinstance(place, torch.device | str) for place in (*args[1:], kwargs.get("device")))


def waits_of(step: Callable[[], object]) -> Counter[str]:
    """Of one call, by function of ours; torch's optimizers, which count on the host, are left out."""
    with OperatorWaits() as waits, CopyWaits(waits.by_caller):
        step()
    del waits.by_caller["optimizer"]
    return waits.by_caller
