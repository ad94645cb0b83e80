"""Weights, FLOPs and saved activations of a module, found by running it on tensors that have shapes but no values.

Called by `tessera plan` for every network of a stage; nothing is allocated, so a laptop measures any model.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Part:
    """One network of a training step."""

    name: str
    """As in the config or in the checkpoints."""
    num_trained: int
    """Parameters that an optimizer holds."""
    num_frozen: int
    """Parameters that never change."""
    averaged: bool
    """Whether an average of the weights is kept."""
    flops: int
    """Floating-point operations for one image: forward and backward, multiplication and addition counted apart."""
    image_bytes: int
    """What one image leaves in memory between forward and backward."""
    cast_bytes: int
    """What does not grow with the batch: low-precision copies of the weights."""


@contextmanager
def shapes_only() -> Iterator[None]:
    """Inside the block every new tensor is a shape without values; build and measure modules here."""
    with FakeTensorMode():
        yield


def measure(
    name: str, module: nn.Module, run: Callable[[int], Tensor] | None, *, bf16: bool = False, averaged: bool = False
) -> Part:
    """Measure what one training step does with `module`; inside `shapes_only`.

    Args:
        run: the step's output for so many images; its sum stands for the loss. None: the module is only kept ready.
        bf16: run it under autocast.
        averaged: whether a training run keeps an average of the weights.
    """
    own = {p.untyped_storage()._cdata for p in module.parameters()}
    (flops_1, bytes_1), (flops_2, bytes_2) = (_step(run, size, own, bf16) if run else (0, 0) for size in (1, 2))
    return Part(
        name,
        num_trained=sum(p.numel() for p in module.parameters() if p.requires_grad),
        num_frozen=sum(p.numel() for p in module.parameters() if not p.requires_grad),
        averaged=averaged,
        flops=flops_2 - flops_1,
        image_bytes=bytes_2 - bytes_1,
        cast_bytes=max(0, 2 * bytes_1 - bytes_2),
    )


def flop_counter() -> FlopCounterMode:
    """Torch's counter with attention: it knows the kernels of GPUs, and passes over the one that a CPU takes.

    Going backward, attention counts twice its forward, like every product; that its kernels do a part of the forward
    again is no use of the machine.
    """
    aten = torch.ops.aten
    return FlopCounterMode(
        display=False,
        custom_mapping={
            aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
            aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda _, *shapes, **k: (
                2 * _attention_flops(*shapes, **k)
            ),
        },
    )


def _attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """q k^T and the sum over v, from shapes [B, heads, N, d], [B, heads, T, d], [B, heads, T, d']."""
    batch, heads, num_queries, width = query
    return 2 * batch * heads * num_queries * key[2] * (width + value[3])


def _step(run: Callable[[int], Tensor], size: int, own: set[int], bf16: bool) -> tuple[int, int]:
    """FLOPs of a step on `size` images, and bytes saved for its backward beside the storages in `own`."""
    saved: dict[int, Tensor] = {}  # by storage, since views of one are saved many times; holding it keeps its number

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in own:
            saved.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with flop_counter() as counter:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                output = run(size)
            num_bytes = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
        if output.requires_grad:
            output.float().sum().backward()
    return int(counter.get_total_flops()), num_bytes
