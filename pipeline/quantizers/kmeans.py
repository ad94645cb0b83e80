"""Statistics, draws and k-means over the vectors of all ranks, as if they lay in one place.

Every rank holds as many samples, and sample i of the global batch lies on rank i % world_size, as the loader deals
them; nothing but sums of the size of the codebook travels. Called by the quantizer of moving averages.
"""

import numpy as np
import torch
from torch import Tensor

from pipeline.distributed.process import all_reduce_sum, rank, world_size
from pipeline.quantizers.base import count_codes
from pipeline.quantizers.search import nearest_codes
from pipeline.randomness import Draws, Purpose

KMEANS_ITERATIONS = 10


def code_statistics(vectors: Tensor, codes: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """Counts [K] and sums [K, d] of the vectors [N, d] of all ranks by code [N]; one collective."""
    sums = torch.zeros(num_codes, vectors.shape[1], device=vectors.device).index_add_(0, codes, vectors)
    joined = all_reduce_sum(torch.cat([count_codes(codes, num_codes)[:, None], sums], dim=1))
    return joined[:, 0], joined[:, 1:]


def draw_vectors(vectors: Tensor, per_sample: int, num_draws: int, seed: int, step: int) -> Tensor:
    """Vectors of the global batch drawn by (seed, step): [N, d] on each rank -> [num_draws, d], equal on all ranks.

    No vector is drawn twice before every one has been drawn once.

    Args:
        vectors: sample after sample, `per_sample` vectors each.
    """
    total = len(vectors) * world_size()
    keys = Draws(seed).uniform(Purpose.CODEBOOK, [0], [step], max(total, num_draws))[0]
    places = torch.from_numpy(np.argsort(keys, kind="stable")[:num_draws] % total).to(vectors.device)
    sample, within = places // per_sample, places % per_sample
    held = sample % world_size() == rank()
    rows = vectors[sample // world_size() * per_sample + within] * held[:, None]
    return all_reduce_sum(rows)


def fit_codes(vectors: Tensor, per_sample: int, num_codes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Lloyd's k-means over the vectors [N, d] of all ranks: codes [K, d] and their counts [K]; collective."""
    codes = draw_vectors(vectors, per_sample, num_codes, seed, step=0)
    for _ in range(KMEANS_ITERATIONS):
        counts, sums = code_statistics(vectors, nearest_codes(vectors, codes), num_codes)
        codes = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], codes)
    return codes, counts
