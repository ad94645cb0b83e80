"""Several datasets in exact proportions: which of them serves each position of a run, without any state.

The positions are rows of `num_lanes`. Of the T = sum of all shares rows of a period, each lane takes as many from a
dataset as that dataset has shares, in a keyed order that is shifted by one from lane to lane: so every T neighbours of
a row hold each dataset exactly in proportion, and so do the T rows of each lane. A lane of a dataset is read by that
lane of the run alone, so a rank that owns whole lanes fetches nothing twice. Called by the plan.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd, lcm

import numpy as np

from pipeline.config import UserError
from pipeline.data.order import MIXTURE_KEYS, permute, round_keys

MAX_PERIOD = 10_000
"""Rows of the longest period: over so many rows of lanes the proportions become exact."""


def shares_of(weights: Sequence[float]) -> tuple[int, ...]:
    """The smallest whole numbers in exactly these proportions, as they are written: 0.3 is 3 / 10.

    Raises:
        UserError: they add up to more than `MAX_PERIOD`.
    """
    fractions = [Fraction(str(weight)) for weight in weights]
    scale = lcm(*(fraction.denominator for fraction in fractions))
    whole = [int(fraction * scale) for fraction in fractions]
    shares = tuple(number // gcd(*whole) for number in whole)
    if sum(shares) > MAX_PERIOD:
        raise UserError(f"data.train: weights {list(weights)} are exact in {sum(shares)}ths only; round them")
    return shares


@dataclass(frozen=True)
class Mixture:
    """See `plan.Interleave`; equal fields give the equal order everywhere."""

    shares: tuple[int, ...]
    num_lanes: int
    seed: int

    def split(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(number of the dataset, position on its own axis), int64 [n] both."""
        period, bounds = sum(self.shares), np.cumsum([0, *self.shares])
        rows, lanes = np.divmod(positions, self.num_lanes)
        periods, steps = np.divmod(rows, period)
        shifted, tweaks = ((steps + lanes) % period).astype(np.uint64), periods.astype(np.uint64)
        slots = permute(shifted, period, round_keys(self.seed, 0, MIXTURE_KEYS), tweaks).astype(np.int64)
        numbers = np.searchsorted(bounds, slots, side="right") - 1
        own_rows = periods * np.array(self.shares)[numbers] + slots - bounds[numbers]
        return numbers, own_rows * self.num_lanes + lanes
