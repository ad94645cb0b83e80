"""Exponential moving average of a trained module's weights, sharded as the engine shards the masters.

Each rank averages the fp32 pieces that it holds, so an update needs no communication and, under ZeRO 1-3, 1/N of
the memory. Made by the stages; `applied()` lends the averaged weights to validation, previews and samples.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import Field

from pipeline.config import Config
from pipeline.distributed.contract import Engine
from pipeline.distributed.fragments import Fragment, Reader


class EmaConfig(Config):
    """The average that is validated, exported and released."""

    decay: float = Field(default=0.9999, ge=0, lt=1)
    """Share of the old average that survives a step; less in the first steps, see `decay_at`."""


class Ema:
    """The average of the trainable parameters of `engine`; buffers and frozen parameters are the module's own."""

    def __init__(self, engine: Engine, config: EmaConfig) -> None:
        self.engine, self.config = engine, config
        self.num_updates = 0
        self.masters = [piece.master for piece in engine.pieces]
        self.averages = [master.clone() for master in self.masters]

    def decay_at(self, num_updates: int) -> float:
        """The decay of the update that follows `num_updates` others: the first weights are soon forgotten."""
        return min(self.config.decay, (1.0 + num_updates) / (10.0 + num_updates))

    @torch.no_grad()
    def update(self) -> None:
        """average <- decay * average + (1 - decay) * master; once after each step."""
        torch._foreach_lerp_(self.averages, self.masters, 1.0 - self.decay_at(self.num_updates))
        self.num_updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the module computes with the averaged weights; afterwards its own return, bit by bit.

        Collective. Do not step or save inside the block.
        """
        own = [master.clone() for master in self.masters]
        self._load(self.averages)
        try:
            yield
        finally:
            self._load(own)

    def fragments(self) -> list[Fragment]:
        """The rank's share of the averages, field `ema`."""
        pairs = zip(self.engine.pieces, self.averages, strict=True)
        return [p.fragment("ema", average) for p, average in pairs if p.written.start < p.written.stop]

    def scalars(self) -> dict[str, Any]:
        """The number of updates, on which the warm-up depends."""
        return {"num_updates": self.num_updates}

    @torch.no_grad()
    def restore(self, reader: Reader) -> None:
        """Overwrite the averages."""
        for piece, average in zip(self.engine.pieces, self.averages, strict=True):
            average.copy_(reader.read(piece.name, "ema", piece.offset, average.numel()))
        self.num_updates = int(reader.scalars["num_updates"])

    @torch.no_grad()
    def _load(self, values: list[torch.Tensor]) -> None:
        torch._foreach_copy_(self.masters, values)
        self.engine.publish()
