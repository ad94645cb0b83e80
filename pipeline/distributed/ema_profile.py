"""Power-function averages of weights: their profiles, and any width rebuilt from stored averages of other widths.

Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models", arXiv 2312.02696, section 3 and
appendix C. An average with exponent gamma weighs the weights of step tau by tau^gamma; its width is the standard
deviation of that profile as a share of the training so far. Called by `pipeline.distributed.ema` while training and by
`pipeline.export` afterwards.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

WIDEST = 12.0**-0.5
"""Relative standard deviation at gamma = 0, where all steps weigh the same."""


class Profile(NamedTuple):
    """One average at one moment."""

    step: float
    """Optimizer steps made."""
    exponent: float
    """gamma."""


def exponent_of(width: float) -> float:
    """gamma of a relative standard deviation in (0, 0.288): 16.97 for 0.05, 6.94 for 0.1."""
    assert 0.0 < width < WIDEST, width
    roots = np.roots([1.0, 7.0, 16.0 - width**-2, 12.0 - width**-2])
    return float(roots.real.max())


def width_of(exponent: float) -> float:
    """The relative standard deviation of gamma."""
    return float((exponent + 1) ** 0.5 / ((exponent + 2) * (exponent + 3) ** 0.5))


def decay_of(exponent: float, step: int) -> float:
    """Share of the old average that survives step number `step`, counted from 1: 0 at the first."""
    return float((1.0 - 1.0 / step) ** (exponent + 1))


def coefficients(stored: Sequence[Profile], wanted: Profile) -> np.ndarray:
    """Factors of the stored averages whose sum has the profile nearest to `wanted`, float64 [len(stored)].

    Least squares over all training time: the normal equations hold inner products of the profiles, known in closed
    form. Unlike the paper's, the factors are held to a sum of 1, so that weights that do not move come out as they
    are.
    """
    num = len(stored)
    equations, right = np.ones((num + 1, num + 1)), np.ones(num + 1)
    equations[:num, :num] = [[_inner(a, b) for b in stored] for a in stored]
    equations[num, num] = 0.0
    right[:num] = [_inner(a, wanted) for a in stored]
    return np.linalg.lstsq(equations, right, rcond=None)[0][:num]


def _inner(a: Profile, b: Profile) -> float:
    """Integral of the product of two profiles."""
    early, late = sorted((a, b))
    shared = (early.step / late.step) ** late.exponent
    return (a.exponent + 1) * (b.exponent + 1) * shared / ((a.exponent + b.exponent + 1) * late.step)
