"""Power-function averages: the paper's exponents, profiles by brute force, other widths rebuilt from two tracks."""

import numpy as np
import pytest

from pipeline.distributed.ema_profile import Profile, _inner, coefficients, decay_of, exponent_of, width_of


def profile_of(exponent: float, num_steps: int) -> np.ndarray:
    """Weight of each step in the average after `num_steps`, by running it."""
    weights = np.zeros(num_steps)
    for step in range(1, num_steps + 1):
        decay = decay_of(exponent, step)
        weights *= decay
        weights[step - 1] += 1.0 - decay
    return weights


@pytest.mark.parametrize("width, exponent", [(0.05, 16.97), (0.10, 6.94)])
def test_exponents_of_the_paper(width: float, exponent: float) -> None:
    assert exponent_of(width) == pytest.approx(exponent, abs=5e-3)
    assert width_of(exponent_of(width)) == pytest.approx(width, rel=1e-9)


def test_the_running_average_has_the_named_width() -> None:
    weights = profile_of(exponent_of(0.1), 2000)
    times = np.arange(1, 2001) / 2000
    assert weights.sum() == pytest.approx(1.0)
    mean = weights @ times
    assert np.sqrt(weights @ (times - mean) ** 2) == pytest.approx(0.1, rel=5e-3)
    assert decay_of(exponent_of(0.1), 1) == 0.0  # the weights of the start leave no trace


@pytest.mark.parametrize("a, b", [((300.0, 6.94), (1000.0, 16.97)), ((1000.0, 6.94), (300.0, 16.97))])
def test_inner_products_are_integrals(a: tuple[float, float], b: tuple[float, float]) -> None:
    times = np.linspace(0, 300, 300_001)
    first, second = ((g + 1) * times**g / t ** (g + 1) for t, g in (a, b))
    assert _inner(Profile(*a), Profile(*b)) == pytest.approx(np.trapezoid(first * second, times), rel=1e-3)


@pytest.mark.parametrize("wanted", [0.07, 0.15])
def test_a_third_width_is_rebuilt_from_two(wanted: float) -> None:
    """Snapshots of widths 0.05 and 0.1 at sixteen moments give the profile of another width."""
    steps = range(125, 2001, 125)
    stored = [Profile(step, exponent_of(width)) for step in steps for width in (0.05, 0.1)]
    factors = coefficients(stored, Profile(2000, exponent_of(wanted)))
    assert factors.sum() == pytest.approx(1.0)
    rebuilt = sum(
        factor * np.pad(profile_of(p.exponent, int(p.step)), (0, 2000 - int(p.step)))
        for factor, p in zip(factors, stored, strict=True)
    )
    direct = profile_of(exponent_of(wanted), 2000)
    assert np.abs(rebuilt - direct).sum() < 0.03  # of 1: how much weight lies at other steps
    assert np.abs(profile_of(exponent_of(0.1), 2000) - direct).sum() > 0.3  # what the nearest stored one would be
