"""Exponential moving average of a trained module's weights, sharded as the engine shards the masters.

Each rank averages the fp32 pieces that it holds, so an update needs no communication and, under ZeRO 1-3, 1/N of
the memory. Made by the stages; `applied()` lends the averaged weights to validation, previews and samples. Averages of
several widths may run side by side, from which `pipeline.export` rebuilds any other after training.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import Field, field_validator

from pipeline.config import Config
from pipeline.distributed.contract import Engine
from pipeline.distributed.ema_profile import WIDEST, decay_of, exponent_of
from pipeline.distributed.fragments import Fragment, Reader


class EmaConfig(Config):
    """The average that is validated, exported and released."""

    decay: float = Field(default=0.9999, ge=0, lt=1)
    """Share of the old average that survives a step; less in the first steps, see `decay_at`."""
    power_widths: tuple[float, ...] = ()
    """Further averages to keep, by their relative standard deviation (0.05 and 0.1 in arXiv 2312.02696), from which
    `tessera export --ema-width` rebuilds any width; let `trainer.keep_every_samples` keep snapshots for it."""

    @field_validator("power_widths")
    @classmethod
    def _check_widths(cls, widths: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0.0 < width < WIDEST for width in widths) or len(set(widths)) < len(widths):
            raise ValueError(f"give different widths between 0 and {WIDEST:.3f}, not {widths}")
        return widths


class Ema:
    """The average of the trainable parameters of `engine`; buffers and frozen parameters are the module's own.

    Args:
        engine: holds the master weights.
        config: `decay` is the rule, unless `width` is given.
        width: relative standard deviation of a power-function average.
    """

    def __init__(self, engine: Engine, config: EmaConfig, width: float | None = None) -> None:
        self.engine, self.config = engine, config
        self.exponent = None if width is None else exponent_of(width)
        self.num_updates = 0
        self.masters = [piece.master for piece in engine.pieces]
        self.averages = [master.clone() for master in self.masters]

    def decay_at(self, num_updates: int) -> float:
        """The decay of the update that follows `num_updates` others: the first weights are soon forgotten."""
        if self.exponent is not None:
            return decay_of(self.exponent, num_updates + 1)
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
        """The number of updates, on which the decay depends, and the exponent of a power-function average."""
        return {"num_updates": self.num_updates, "exponent": self.exponent}

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
