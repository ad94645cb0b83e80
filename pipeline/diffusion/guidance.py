"""Classifier-free guidance (Ho and Salimans, arXiv 2207.12598) as a denoiser for the samplers.

Joins the three things that a sampler must not know: the network, its parametrisation and the guidance. Used by
`pipeline.generate` and the diffusion stage's preview.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.diffusion.objective import Objective
from pipeline.diffusion.sampling import Denoiser

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x_t [B, C, H, W], timesteps [B] on the CPU, text states [B, T, D]) -> prediction [B, C, H, W]."""


def guide(conditional: Tensor, unconditional: Tensor, scale: float, rescale: float = 0.0) -> Tensor:
    """Extrapolate from the unconditional prediction through the conditional one: [B, C, H, W].

    `rescale` in 0..1 mixes in the result scaled to the standard deviation that the conditional prediction has over
    each sample (Lin et al., arXiv 2305.08891, eq. 15 and 16), against over-exposure under large scales; 0.7 there.
    """
    guided = unconditional + scale * (conditional - unconditional)  # [B, C, H, W]
    if rescale == 0.0:
        return guided
    dims = tuple(range(1, guided.ndim))
    ratio = conditional.std(dims, keepdim=True) / guided.std(dims, keepdim=True)  # [B, 1, 1, 1]
    return guided * (rescale * ratio + (1.0 - rescale))  # [B, C, H, W]


def guided_denoiser(
    network: Network,
    objective: Objective,
    states: Tensor,
    null_states: Tensor,
    scale: float,
    rescale: float = 0.0,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Denoiser:
    """The denoiser under guidance from `null_states` [B, T, D] towards the prompts' `states` [B, T, D].

    A scale of 1 is plain conditional sampling and costs one evaluation of the network a step instead of two; so does
    every timestep outside `interval`, in shares of the schedule (arXiv 2404.07724).
    """
    low, high = (share * (objective.schedule.num_timesteps - 1) for share in interval)

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        seen = objective.network_input(x, t)  # [B, C, H, W]
        if scale == 1.0 or not low <= int(t[0]) <= high:
            output = network(seen, t, states).float()  # [B, C, H, W]
        else:
            both = network(torch.cat([seen, seen]), torch.cat([t, t]), torch.cat([states, null_states])).float()
            conditional, unconditional = both.chunk(2)  # [B, C, H, W] each
            output = guide(conditional, unconditional, scale, rescale)  # [B, C, H, W]
        return objective.clean(output, x, t)  # [B, C, H, W]

    return denoise
