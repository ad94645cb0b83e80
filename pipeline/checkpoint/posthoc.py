"""An average of any width, rebuilt after training from the power-function averages in a run's generations.

Arithmetic in `pipeline.distributed.ema_profile` (Karras et al., arXiv 2312.02696). Called by `pipeline.export`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.checkpoint.generation import DamagedError, Generation, committed
from pipeline.checkpoint.reader import GenerationReader
from pipeline.config import UserError
from pipeline.distributed.ema_profile import WIDEST, Profile, coefficients, exponent_of


class _Stored(NamedTuple):
    """One average of one generation."""

    generation: Generation
    part: str
    profile: Profile


def rebuilt_average(directory: Path | str, newest: Generation, width: float) -> dict[str, Tensor]:
    """The average of that relative standard deviation at the end of `newest`, by parameter name, float32.

    Args:
        directory: of the run's generations; all of them that hold averages of several widths take part.

    Raises:
        UserError: an impossible width, or no stored averages to build it from.
    """
    if not 0.0 < width < WIDEST:
        raise UserError(f"--ema-width {width}: a relative standard deviation lies between 0 and {WIDEST:.3f}")
    stored = [entry for entry in _stored(Path(directory)) if entry.generation.number <= newest.number]
    if not stored:
        raise UserError(f"{directory}: no averages of several widths; set stage.ema.power_widths before training")
    end = max(entry.profile.step for entry in stored)
    factors = coefficients([entry.profile for entry in stored], Profile(end, exponent_of(width)))
    total: dict[str, Tensor] = {}
    for entry, factor in zip(stored, factors, strict=True):
        for name, tensor in GenerationReader(entry.generation).tensors(entry.part, "ema").items():
            total[name] = total.get(name, torch.zeros(())) + float(factor) * tensor.double()
    return {name: tensor.float() for name, tensor in total.items()}


def _stored(directory: Path) -> Iterator[_Stored]:
    """Every power-function average of the whole generations under `directory`."""
    for path in committed(directory):
        try:
            generation = Generation.open(path)
            generation.verify()
        except (DamagedError, OSError):
            continue
        for part, scalars in generation.scalars.items():
            if scalars.get("exponent") is not None and scalars["num_updates"] > 0:
                yield _Stored(generation, part, Profile(scalars["num_updates"], scalars["exponent"]))
