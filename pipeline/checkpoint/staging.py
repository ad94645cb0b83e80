"""The copy of a rank's state that a save writes: taken between two steps, laid end to end, in memory that stays.

Fresh memory costs many times the copy itself, since the kernel clears every page that it hands out; so the buffers are
made once, while a run starts: a rank keeps a second copy of its share of the state on the CPU. For a GPU they
are pinned. Called by `store`.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.checkpoint.reader import Run
from pipeline.distributed.fragments import Stateful


@dataclass(frozen=True)
class Snapshot:
    """What `write_rank_file` writes; its tensors are the staging's own and hold until the next `take`."""

    tensors: dict[str, Tensor]
    """One long tensor on the CPU for each (part, field, dtype)."""
    runs: list[Run]
    """Where each run lies in them."""


class Staging:
    """The buffers of one rank."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._buffers: dict[str, Tensor] = {}

    def prepare(self, shapes: Mapping[str, tuple[int, torch.dtype]]) -> None:
        """Make the buffers, by key their length and type, and touch every page of them.

        By numpy, since this runs in a thread of its own: one parallel operation of torch there makes a second team of
        OpenMP threads for good, and with more threads than cores libgomp lets the training's team sleep between
        operations instead of spinning, which took 40 % off the speed of a small model.
        """
        for key, (length, dtype) in shapes.items():
            self._buffer(key, length, dtype).view(torch.uint8).numpy().fill(0)

    def take(self, parts: Mapping[str, Stateful]) -> Snapshot:
        """Copy the state of `parts`; on return they may change."""
        pieces, runs = lay_out(parts)
        tensors = {}
        for key, (length, dtype) in shapes_of(pieces).items():
            tensors[key] = buffer = self._buffer(key, length, dtype)
            for target, piece in zip(buffer.split([p.numel() for p in pieces[key]]), pieces[key], strict=True):
                target.copy_(piece, non_blocking=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return Snapshot(tensors, runs)

    def _buffer(self, key: str, length: int, dtype: torch.dtype) -> Tensor:
        if key not in self._buffers or self._buffers[key].numel() != length:
            self._buffers[key] = torch.empty(length, dtype=dtype, pin_memory=self.device.type == "cuda")
        return self._buffers[key]


def lay_out(parts: Mapping[str, Stateful]) -> tuple[dict[str, list[Tensor]], list[Run]]:
    """The live runs of each (part, field, dtype) in the order in which they are laid down, and where each will lie."""
    pieces: dict[str, list[Tensor]] = defaultdict(list)
    lengths: dict[str, int] = defaultdict(int)
    runs = []
    for part, stateful in parts.items():
        for f in stateful.fragments():
            key = f"{part}/{f.field}/{str(f.tensor.dtype).removeprefix('torch.')}"
            runs.append(Run(part, f.field, f.name, f.shape, f.offset, f.tensor.numel(), key, lengths[key]))
            pieces[key].append(f.tensor.detach())
            lengths[key] += f.tensor.numel()
    return pieces, runs


def shapes_of(pieces: Mapping[str, list[Tensor]]) -> dict[str, tuple[int, torch.dtype]]:
    """Length and type of the long tensor of each key."""
    return {key: (sum(p.numel() for p in tensors), tensors[0].dtype) for key, tensors in pieces.items()}
