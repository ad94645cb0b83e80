"""What the network predicts, in one class for both sides: the loss of training and the denoiser of sampling.

The three parametrisations are noise ("eps", Ho et al., arXiv 2006.11239), velocity ("v", Salimans and Ho,
arXiv 2202.00512) and the clean latent ("x0"). Weights are min-SNR (Hang et al., arXiv 2303.09556) and
truncated SNR. Used by the diffusion stage and by `pipeline.diffusion.guidance`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from pipeline.config import Config, UserError
from pipeline.diffusion.schedule import NoiseSchedule, ScheduleConfig, build_schedule

Prediction = Literal["eps", "v", "x0"]


class ObjectiveConfig(Config):
    """The prediction target and the weight of each timestep."""

    schedule: ScheduleConfig = ScheduleConfig()
    """The noise schedule, shared by training and sampling."""
    prediction: Prediction = "eps"
    """What the network's output means: the noise, the velocity, or the clean latent."""
    min_snr_gamma: float | None = Field(default=None, gt=0)
    """Upper clip of the signal-to-noise ratio in the loss weight (the paper's 5)."""
    truncated_snr: float | None = Field(default=None, gt=0)
    """Lower clip of the same ratio (1 in progressive distillation): without it a v loss with `min_snr_gamma` learns
    nothing where there is only noise, which is where a caption decides what goes where. Neither clip: every timestep
    weighs 1."""


@dataclass(frozen=True)
class Objective:
    """A parametrisation over a schedule."""

    schedule: NoiseSchedule
    prediction: Prediction
    min_snr_gamma: float | None = None
    truncated_snr: float | None = None

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should say at x_t: [B, ...] like `clean`."""
        if self.prediction == "eps":
            return noise
        if self.prediction == "x0":
            return clean
        signal_scale, noise_scale = self.schedule.scales(t, clean)
        return signal_scale * noise - noise_scale * clean

    def clean(self, output: Tensor, noised: Tensor, t: Tensor) -> Tensor:
        """The clean latent that the network's `output` at `noised` = x_t stands for: [B, ...]."""
        if self.prediction == "x0":
            return output
        signal_scale, noise_scale = self.schedule.scales(t, noised)
        if self.prediction == "eps":
            return (noised - noise_scale * output) / signal_scale
        return signal_scale * noised - noise_scale * output

    def weights(self) -> Tensor:
        """Loss weight of each timestep, float64 [num_timesteps]: SNR, clipped from above and below, on the x0 loss.

        The upper clip is min-SNR weighting, the lower one the truncated SNR of arXiv 2202.00512. The same weight on an
        eps loss is that over SNR and on a v loss that over SNR + 1; written so that they keep their limits where a
        zero-terminal schedule has SNR = 0.
        """
        snr = self.schedule.snr
        if self.min_snr_gamma is None and self.truncated_snr is None:
            return torch.ones_like(snr)
        clipped = snr.clamp(min=self.truncated_snr, max=self.min_snr_gamma or torch.inf)
        if self.prediction == "eps":
            return (clipped / snr).nan_to_num(nan=1.0)  # 0 / 0: the limit
        return clipped if self.prediction == "x0" else clipped / (snr + 1.0)

    def squared_error(self, output: Tensor, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Mean squared error of the network's `output` over each sample, float32 [B]."""
        return (output.float() - self.target(clean.float(), noise.float(), t)).square().flatten(1).mean(dim=1)

    def loss(self, output: Tensor, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Weighted mean squared error of each sample, float32 [B]; the mean of it is what training minimises."""
        weight = self.weights()[t.cpu()].to(output.device, torch.float32)  # [B]
        return weight * self.squared_error(output, clean, noise, t)  # [B]


def build_objective(config: ObjectiveConfig) -> Objective:
    """The objective over the schedule that `config` describes.

    Raises:
        UserError: noise prediction with zero-terminal SNR: pure noise says nothing about the latent.
    """
    if config.prediction == "eps" and config.schedule.zero_terminal_snr:
        raise UserError("prediction: eps cannot be used with zero_terminal_snr; choose v or x0")
    return Objective(build_schedule(config.schedule), config.prediction, config.min_snr_gamma, config.truncated_snr)
