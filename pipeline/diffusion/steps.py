"""The coefficients of one sampling step, as python floats: what the samplers of `pipeline.diffusion.sampling` share."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from pipeline.diffusion.schedule import NoiseSchedule


@dataclass(frozen=True)
class Step:
    """From x = signal * clean + noise * n to the same with the next factors; the last step leads to 1 and 0."""

    index: int
    t: int
    t_next: int | None
    """None after the last step."""
    signal: float
    noise: float
    signal_next: float
    noise_next: float

    @property
    def transition_variance(self) -> float:
        """Variance of q(x_t | x_next), which is what the stride adds in the forward process."""
        return self.noise**2 - (self.signal / self.signal_next * self.noise_next) ** 2

    @property
    def posterior_std(self) -> float:
        """Standard deviation of q(x_next | x_t, clean)."""
        return self.noise_next / self.noise * math.sqrt(max(self.transition_variance, 0.0))

    @property
    def width(self) -> float:
        """Distance in half the log-SNR, h of arXiv 2211.01095; infinite from and to the ends of the scale."""
        return _half_log_snr(self.signal_next, self.noise_next) - _half_log_snr(self.signal, self.noise)

    def towards(self, clean: Tensor, x: Tensor) -> Tensor:
        """The exact solution for a clean estimate that is constant over the step: [B, ...]."""
        decay = self.noise_next / self.noise
        return decay * x - self.signal_next * math.expm1(-self.width) * clean  # [B, ...]


def steps_of(schedule: NoiseSchedule, timesteps: Sequence[int]) -> Iterator[Step]:
    """The steps that begin at `timesteps`, which fall."""
    assert all(a > b for a, b in zip(timesteps, timesteps[1:], strict=False)), "timesteps must fall"
    factors = [(float(schedule.signal[t]), float(schedule.noise[t])) for t in timesteps] + [(1.0, 0.0)]
    for index, t in enumerate(timesteps):
        t_next = timesteps[index + 1] if index + 1 < len(timesteps) else None
        yield Step(index, t, t_next, *factors[index], *factors[index + 1])


def corrected(history: Sequence[Tensor], clean: Tensor, widths: Sequence[float]) -> Tensor:
    """The estimate with which UniC (arXiv 2302.04867, algorithm 1, B(h) = e^h - 1) repeats the step that led to
    `clean`.

    Args:
        history: estimates at the beginning of that step and, for the second order, of the one before it.
        clean: the estimate at its end.
        widths: of that step and the one before it, the later one last.
    """
    *older, start = history
    if not older or math.isinf(widths[0]):
        return start + 0.5 * (clean - start)  # [B, ...]
    ratio, h = widths[0] / widths[1], -widths[1]  # r of the paper is -ratio
    phi = math.expm1(h) / h - 1.0  # h phi_2(h)
    first, second = phi / math.expm1(h), 2.0 * (phi / h - 0.5) / math.expm1(h)
    # rho solves rho_0 + rho_1 = first, -ratio rho_0 + rho_1 = second
    rho_0 = (first - second) / (1.0 + ratio)
    return start + rho_0 * (older[0] - start) / -ratio + (first - rho_0) * (clean - start)  # [B, ...]


def _half_log_snr(signal: float, noise: float) -> float:
    """log(signal / noise), infinite at the ends."""
    if signal == 0.0 or noise == 0.0:
        return math.inf if signal else -math.inf
    return math.log(signal) - math.log(noise)
