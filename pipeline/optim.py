"""Adam with decoupled weight decay, and the learning rate as a function of the samples seen.

Called by `pipeline.distributed.engine` (the optimizer) and by the stages (the learning rate of each step).
"""

import math
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from pipeline.config import Config


class OptimConfig(Config):
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101) and its schedule."""

    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak learning rate, reached after the warm-up."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the first and the second moment; GAN training likes (0.5, 0.9)."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled decay of weights with two or more dimensions; biases and norm scales never decay."""
    warmup_samples: int = Field(default=0, ge=0)
    """Samples over which the learning rate climbs linearly from zero."""
    decay: Literal["constant", "cosine"] = "constant"
    """What follows the warm-up: the peak for ever, or half a cosine down to zero at the end of the run."""

    @model_validator(mode="after")
    def _betas_are_decay_rates(self) -> "OptimConfig":
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"betas are {self.betas}; both must be in [0, 1)")
        return self


def learning_rate_at(config: OptimConfig, samples_seen: int, total_samples: int) -> float:
    """Learning rate of the step that begins when `samples_seen` samples have been trained on."""
    if samples_seen < config.warmup_samples:
        return config.learning_rate * samples_seen / config.warmup_samples
    if config.decay == "constant":
        return config.learning_rate
    span = max(total_samples - config.warmup_samples, 1)
    progress = min((samples_seen - config.warmup_samples) / span, 1.0)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


def build_optimizer(config: OptimConfig, module: nn.Module) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of `module`, moments allocated at once.

    Two groups, with and without weight decay; an empty group is left out. The fused kernel is one pass over memory.
    """
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if _decays(p)], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if not _decays(p)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


def adam_state(optimizer: torch.optim.AdamW, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    """The state of `parameter` in `optimizer`: step, exp_avg, exp_avg_sq.

    It is allocated here, before the first step, so that a checkpoint has the same contents at every step.
    """
    state = optimizer.state[parameter]
    if "step" not in state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return state


def _decays(parameter: nn.Parameter) -> bool:
    return parameter.dim() >= 2
