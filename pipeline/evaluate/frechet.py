"""Frechet distance of two sets of feature vectors, from sums that ranks add up (Heusel et al., 2017, equation 6).

Called by `judge` and `fid`, with the features of `inception`.
"""

import torch
from torch import Tensor

from pipeline.distributed.process import all_reduce_sum


class FrechetMeter:
    """Means and covariances of two sets of features, in float64; the batches and ranks do not matter.

    Args:
        width: of a feature vector.
        name: of the figure.
    """

    def __init__(self, width: int, device: torch.device, name: str) -> None:
        self.name = name
        self.counts = torch.zeros(2, dtype=torch.float64, device=device)
        self.sums = torch.zeros(2, width, dtype=torch.float64, device=device)
        self.products = torch.zeros(2, width, width, dtype=torch.float64, device=device)

    def update(self, restored: Tensor, images: Tensor) -> None:
        """Add features of reconstructed or drawn pictures and of pictures of the data, [B, D] each."""
        for place, features in enumerate((restored.double(), images.double())):
            self.counts[place] += len(features)
            self.sums[place] += features.sum(0)
            self.products[place].addmm_(features.t(), features)

    def compute(self) -> dict[str, float]:
        """The distance by its name; collective. Of fewer than two pictures there is none."""
        counts, sums, products = (all_reduce_sum(t.clone()) for t in (self.counts, self.sums, self.products))
        if counts.min() < 2:
            return {}
        means = sums / counts[:, None]
        outer = counts[:, None, None] * means[:, :, None] * means[:, None, :]
        covariances = (products - outer) / (counts - 1)[:, None, None]
        return {self.name: frechet_distance(means[0], covariances[0], means[1], covariances[1])}


def frechet_distance(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), of vectors [D] and symmetric matrices [D, D] in float64.

    The trace of the root is that of the roots of the eigenvalues of R C_b R for R = C_a^(1/2), which is symmetric: no
    root of a matrix that has none, however few the samples.
    """
    values, vectors = torch.linalg.eigh(covariance_a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.t()
    shared = torch.linalg.eigvalsh(root @ covariance_b @ root).clamp(min=0).sqrt().sum()
    spread = covariance_a.trace() + covariance_b.trace() - 2 * shared
    return float((mean_a - mean_b).square().sum() + spread)
