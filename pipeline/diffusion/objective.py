"""What the network predicts, in one class for both sides: the loss of training and the denoiser of sampling.

Five parametrisations: noise ("eps", Ho et al., arXiv 2006.11239), velocity ("v", Salimans and Ho, arXiv 2202.00512),
the clean latent ("x0"), the preconditioned network of EDM ("edm", Karras et al., arXiv 2206.00364) and the straight
line of rectified flow ("flow", Liu et al., arXiv 2209.03003). Weights are min-SNR (Hang et al., arXiv 2303.09556) and
truncated SNR. Used by the diffusion stage and by `pipeline.diffusion.guidance`.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pipeline.config import Config, UserError
from pipeline.diffusion.schedule import NoiseSchedule, ScheduleConfig, build_schedule

Prediction = Literal["eps", "v", "x0", "edm", "flow"]


class ObjectiveConfig(Config):
    """The prediction target, the weight of each timestep, and how often each is trained."""

    schedule: ScheduleConfig = ScheduleConfig()
    """The noise schedule, shared by training and sampling."""
    prediction: Prediction = "eps"
    """What the network's output means: the noise, the velocity, the clean latent, EDM's mixture, or noise - latent."""
    sigma_data: float = Field(default=1.0, gt=0)
    """Standard deviation of the data that edm's preconditioning assumes: 1 for normalised latents."""
    log_sigma_normal: tuple[float, float] | None = None
    """Mean and standard deviation of ln(noise / signal) in training: (-1.2, 1.2) in EDM, (0, 1) is the logit-normal
    rule of arXiv 2403.03206 for flow. None draws every timestep equally often."""
    min_snr_gamma: float | None = Field(default=None, gt=0)
    """Upper clip of the signal-to-noise ratio in the loss weight (the paper's 5)."""
    truncated_snr: float | None = Field(default=None, gt=0)
    """Lower clip of the same ratio (1 in progressive distillation): without it a v loss with `min_snr_gamma` learns
    nothing where there is only noise, which is where a caption decides what goes where. Neither clip: every timestep
    weighs 1."""

    def shifted(self, shift: float) -> "ObjectiveConfig":
        """The same on a schedule with that `shift`."""
        return self.model_copy(update={"schedule": self.schedule.model_copy(update={"shift": shift})})


@dataclass(frozen=True)
class Objective:
    """A parametrisation over a schedule; timesteps `t` are int64 [B] on the CPU, as the schedule wants them."""

    schedule: NoiseSchedule
    prediction: Prediction
    min_snr_gamma: float | None = None
    truncated_snr: float | None = None
    sigma_data: float = 1.0
    log_sigma_normal: tuple[float, float] | None = None

    def network_input(self, noised: Tensor, t: Tensor) -> Tensor:
        """What the network sees of x_t: [B, ...]; for edm brought to unit variance (c_in of arXiv 2206.00364)."""
        return noised / self._edm_scale(t, noised) if self.prediction == "edm" else noised

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should say at x_t: [B, ...] like `clean`."""
        if self.prediction == "eps":
            return noise
        if self.prediction == "x0":
            return clean
        if self.prediction == "flow":
            return noise - clean
        signal_scale, noise_scale = self.schedule.scales(t, clean)
        if self.prediction == "v":
            return signal_scale * noise - noise_scale * clean
        mixed = noise_scale * clean - signal_scale * self.sigma_data**2 * noise
        return mixed / (self.sigma_data * self._edm_scale(t, clean))

    def clean(self, output: Tensor, noised: Tensor, t: Tensor) -> Tensor:
        """The clean latent that the network's `output` at `noised` = x_t stands for: [B, ...]."""
        if self.prediction == "x0":
            return output
        signal_scale, noise_scale = self.schedule.scales(t, noised)
        if self.prediction == "eps":
            return (noised - noise_scale * output) / signal_scale
        if self.prediction == "v":
            return signal_scale * noised - noise_scale * output
        if self.prediction == "flow":
            return noised - noise_scale * output
        scale = self._edm_scale(t, noised)
        kept = signal_scale * self.sigma_data**2 / scale**2  # c_skip over the signal's factor
        return kept * noised + noise_scale * self.sigma_data / scale * output

    def weights(self) -> Tensor:
        """Loss weight of each timestep, float64 [num_timesteps]: SNR, clipped from above and below, on the x0 loss.

        The upper clip is min-SNR weighting, the lower one the truncated SNR of arXiv 2202.00512. An error of the output
        is an error of x0 times a known factor, so the same rule weighs every parametrisation; where a zero-terminal
        schedule has SNR = 0 it keeps its limit.
        """
        snr = self.schedule.snr
        if self.min_snr_gamma is None and self.truncated_snr is None:
            return torch.ones_like(snr)
        clipped = snr.clamp(min=self.truncated_snr, max=self.min_snr_gamma or torch.inf)
        return (clipped * self._gain().square()).nan_to_num(nan=1.0)  # 0 * infinity, of eps at SNR = 0: the limit

    def squared_error(self, output: Tensor, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Mean squared error of the network's `output` over each sample, float32 [B]."""
        return (output.float() - self.target(clean.float(), noise.float(), t)).square().flatten(1).mean(dim=1)

    def loss(self, output: Tensor, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Weighted mean squared error of each sample, float32 [B]; the mean of it is what training minimises."""
        weight = self.weights()[t].float().to(output.device, non_blocking=True)  # [B]
        return weight * self.squared_error(output, clean, noise, t)  # [B]

    def timesteps(self, uniform: np.ndarray) -> Tensor:
        """Training timesteps, int64 [B] on the CPU, from uniform numbers in [0, 1), [B]."""
        num = self.schedule.num_timesteps
        if self.log_sigma_normal is None:
            return torch.from_numpy((uniform * num).astype(np.int64))
        mean, std = self.log_sigma_normal
        log_sigma = -0.5 * self.schedule.snr.log()  # [num], infinite at a zero-terminal end
        edges = (log_sigma[1:] + log_sigma[:-1]) / 2  # between neighbours
        below = torch.special.ndtr((edges - mean) / std)  # [num - 1]
        return torch.searchsorted(below, torch.from_numpy(uniform), right=True)

    def _gain(self) -> Tensor:
        """|d x0 / d output|, float64 [num_timesteps]."""
        signal, noise = self.schedule.signal, self.schedule.noise
        if self.prediction == "x0":
            return torch.ones_like(noise)
        if self.prediction == "eps":
            return noise / signal
        if self.prediction == "edm":
            return noise * self.sigma_data / (noise**2 + (signal * self.sigma_data) ** 2).sqrt()
        return noise

    def _edm_scale(self, t: Tensor, like: Tensor) -> Tensor:
        """Standard deviation of x_t for data of `sigma_data`: [B, 1, 1, ...]."""
        signal_scale, noise_scale = self.schedule.scales(t, like)
        return torch.hypot(noise_scale, signal_scale * self.sigma_data)


def build_objective(config: ObjectiveConfig) -> Objective:
    """The objective over the schedule that `config` describes.

    Raises:
        UserError: noise prediction where the last timestep is pure noise, which says nothing about the latent, or a
            parametrisation that its schedule cannot carry.
    """
    kind, prediction = config.schedule.kind, config.prediction
    if prediction == "eps" and (config.schedule.zero_terminal_snr or kind == "flow"):
        raise UserError("prediction: eps cannot be used with zero_terminal_snr; choose v or x0")
    if (prediction == "flow") != (kind == "flow"):
        raise UserError(f"prediction: {prediction} on a {kind} schedule; flow belongs to flow, and nothing else does")
    if kind == "edm" and prediction != "edm":
        raise UserError(f"prediction: {prediction} on an edm schedule, whose x_t grows without bound; choose edm")
    if config.log_sigma_normal is not None and not config.log_sigma_normal[1] > 0.0:
        raise UserError(f"log_sigma_normal: a standard deviation of {config.log_sigma_normal[1]}; give a positive one")
    return Objective(
        build_schedule(config.schedule),
        prediction,
        config.min_snr_gamma,
        config.truncated_snr,
        config.sigma_data,
        config.log_sigma_normal,
    )
