"""The validation loss of a diffusion model: squared error at eight fixed timesteps, with fixed noise for each sample.

The rule is MLPerf Training's text to image (v5.1): timesteps at (i + 1/2) / 8 of the schedule. A sample belongs to
one of them by its number, so a pass costs one evaluation of the network for each sample. Called by the diffusion
stage and by `tessera evaluate`.
"""

import torch
from torch import Tensor

from pipeline.distributed.process import all_reduce_sum

NUM_STRATA = 8

DENOISING = {
    "name": "denoising-1",
    "timesteps": "(i + 1/2) / 8 of the schedule, i the number of the sample modulo 8; captions kept",
    "noise": "standard normal, a function of seed 0 and the number of the sample",
    "validation_loss": "squared error of the network's own target, mean over latents, then samples, then timesteps",
    "average": "every sample once, no padding",
}
"""How `DenoisingMeter` measures."""


class DenoisingMeter:
    """Adds up losses by timestep; its figures are those of one process, whatever the ranks and batch sizes."""

    def __init__(self) -> None:
        self.sums = torch.zeros(2, NUM_STRATA, dtype=torch.float64)  # losses, counts

    @staticmethod
    def timesteps(sample_ids: list[int], num_timesteps: int) -> Tensor:
        """Where each sample is measured: int64 [B]."""
        stratum = torch.tensor(sample_ids, dtype=torch.int64) % NUM_STRATA
        return (2 * stratum + 1) * num_timesteps // (2 * NUM_STRATA)

    def update(self, losses: Tensor, sample_ids: list[int]) -> None:
        """Add the loss of each sample, [B]."""
        stratum = torch.tensor(sample_ids, dtype=torch.int64) % NUM_STRATA
        losses = losses.double().cpu()
        self.sums[0].index_add_(0, stratum, losses)
        self.sums[1].index_add_(0, stratum, torch.ones_like(losses))

    def compute(self) -> dict[str, float]:
        """`validation_loss` and `validation_loss_at_0` to `_7`; empty when nothing was seen. Collective."""
        losses, counts = all_reduce_sum(self.sums.clone())
        seen = counts > 0
        if not seen.any():
            return {}
        means = losses / counts.clamp(min=1)
        by_timestep = {f"validation_loss_at_{i}": float(means[i]) for i in range(NUM_STRATA) if seen[i]}
        return {"validation_loss": float(means[seen].mean()), **by_timestep}
