"""Named flat pieces of tensors: the one language in which training state leaves and enters memory.

A rank describes what it owns as runs of whole, named tensors; a checkpoint stores those runs, and any other world
size, ZeRO stage or engine asks for the runs that it needs. Spoken by the engines, the averages and the stages'
own state; stored and read by `pipeline.checkpoint`.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

Field = Literal["param", "exp_avg", "exp_avg_sq", "ema", "buffer"]
"""What a fragment is a part of: the fp32 master weight, Adam's two moments, an average, a module's buffer."""


@dataclass(frozen=True)
class Fragment:
    """A flat run of a named tensor that this rank writes; all ranks together write each element exactly once."""

    name: str
    """Name of the tensor, as `named_parameters` or `named_buffers` of the unwrapped module gives it."""
    field: Field
    """Which of the tensors of that name."""
    shape: tuple[int, ...]
    """Shape of the whole tensor."""
    offset: int
    """First element of the run in the flattened whole tensor."""
    tensor: Tensor
    """The run itself, one-dimensional; a view of live memory, to be copied before the next step."""


class Reader(Protocol):
    """A stored part, whatever topology wrote it."""

    @property
    def scalars(self) -> Mapping[str, Any]:
        """The JSON values that `Stateful.scalars` returned when the part was saved."""
        ...

    def read(self, name: str, field: Field, offset: int, length: int) -> Tensor:
        """Elements [offset, offset + length) of the flattened tensor, one-dimensional, on the CPU.

        Raises:
            UserError: the part holds no such tensor, or a shorter one.
        """
        ...

    def shape(self, name: str, field: Field) -> tuple[int, ...] | None:
        """Shape of the whole tensor; None when the part holds no such tensor."""
        ...


class Stateful(Protocol):
    """Anything that a checkpoint carries. `restore` may be collective, so all ranks call it in the same order."""

    def fragments(self) -> list[Fragment]:
        """The runs that this rank writes. Names may differ between ranks; no communication."""
        ...

    def scalars(self) -> dict[str, Any]:
        """Small JSON values, the same on every rank."""
        ...

    def restore(self, reader: Reader) -> None:
        """Overwrite the whole live state with the stored one."""
        ...


@dataclass(frozen=True)
class Piece:
    """A run of one trainable parameter whose fp32 master weight and Adam moments this rank holds.

    Under ZeRO 1-3 ranks hold disjoint pieces; under replication (ZeRO 0, accelerate) each holds every parameter
    whole and `written` cuts out the share that it writes.
    """

    name: str
    """Name of the parameter."""
    shape: tuple[int, ...]
    """Shape of the whole parameter."""
    offset: int
    """First element of the run in the flattened parameter."""
    master: Tensor
    """fp32 master weights of the run, [length]; a view that stays valid for the life of the engine."""
    exp_avg: Tensor
    """Adam's first moment, [length]."""
    exp_avg_sq: Tensor
    """Adam's second moment, [length]."""
    written: slice
    """The part of the run, counted from its start, that this rank writes to checkpoints; may be empty."""

    def fragment(self, field: Field, tensor: Tensor) -> Fragment:
        """The written part of `tensor`, which runs parallel to the master."""
        return Fragment(self.name, field, self.shape, self.offset + self.written.start, tensor.detach()[self.written])

    def fragments(self) -> list[Fragment]:
        """Master and moments of the written part; nothing when it is empty."""
        if self.written.start >= self.written.stop:
            return []
        return [
            self.fragment("param", self.master),
            self.fragment("exp_avg", self.exp_avg),
            self.fragment("exp_avg_sq", self.exp_avg_sq),
        ]

    @torch.no_grad()
    def restore(self, reader: Reader) -> None:
        """Overwrite master and moments of the whole run."""
        fields: Iterable[tuple[Field, Tensor]]
        fields = (("param", self.master), ("exp_avg", self.exp_avg), ("exp_avg_sq", self.exp_avg_sq))
        for field, tensor in fields:
            tensor.copy_(reader.read(self.name, field, self.offset, tensor.numel()))


def share_of(total: int, rank: int, world_size: int) -> slice:
    """The rank's run when `total` elements are cut into `world_size` nearly equal runs, in order."""
    return slice(total * rank // world_size, total * (rank + 1) // world_size)


def written_slices(lengths: list[int], rank: int, world_size: int) -> list[slice]:
    """For tensors that every rank holds whole: the slice of each that `rank` writes, so that all write alike much."""
    share = share_of(sum(lengths), rank, world_size)
    slices, begin = [], 0
    for length in lengths:
        start = min(max(share.start - begin, 0), length)
        slices.append(slice(start, max(start, min(share.stop - begin, length))))
        begin += length
    return slices


def buffer_fragments(module: nn.Module) -> list[Fragment]:
    """Every persistent buffer of `module`, whole."""
    return [
        Fragment(name, "buffer", tuple(buffer.shape), 0, buffer.detach().reshape(-1))
        for name, buffer in persistent_buffers(module).items()
    ]


@torch.no_grad()
def restore_buffers(module: nn.Module, reader: Reader) -> None:
    """Overwrite every persistent buffer of `module`."""
    for name, buffer in persistent_buffers(module).items():
        buffer.copy_(reader.read(name, "buffer", 0, math.prod(buffer.shape)).view(buffer.shape))


def persistent_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The buffers that belong to the state of `module`, by name."""
    kept = module.state_dict(keep_vars=True).keys()
    return {name: buffer for name, buffer in module.named_buffers() if name in kept}
