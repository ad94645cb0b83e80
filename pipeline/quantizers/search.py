"""Exact nearest-code search in float32 that never holds the whole distance matrix.

Vectors and codes are walked in tiles, so memory is bounded whatever the codebook and the batch. On unit vectors
the nearest code is also the one of the largest cosine, so one search serves both. Called by the quantizers.
"""

import torch
from torch import Tensor

MAX_TILE_ELEMENTS = 1 << 24
"""Largest number of scores held at once (64 MiB of float32)."""
MAX_TILE_CODES = 1 << 13
"""Largest number of codes in one tile."""


@torch.no_grad()
def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest code (Euclidean) of each vector; the lowest index wins a tie.

    Args:
        vectors: float [N, d].
        codebook: float [K, d].

    Returns:
        int64 [N].
    """
    with torch.autocast(vectors.device.type, enabled=False):
        vectors, codebook = vectors.float(), codebook.float()
        rows = max(1, MAX_TILE_ELEMENTS // min(len(codebook), MAX_TILE_CODES))
        return torch.cat([_nearest_of_tile(part, codebook) for part in vectors.split(rows)])


def _nearest_of_tile(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Running minimum of |e|^2 / 2 - z.e over the tiles of the codebook; |z|^2 is the same for all codes."""
    best_score = torch.full((len(vectors),), torch.inf, device=vectors.device)
    best_code = torch.zeros(len(vectors), dtype=torch.long, device=vectors.device)
    for start in range(0, len(codebook), MAX_TILE_CODES):
        codes = codebook[start : start + MAX_TILE_CODES]
        score, code = torch.addmm(codes.square().sum(1) / 2, vectors, codes.t(), alpha=-1).min(dim=1)
        better = score < best_score  # strict: the earlier tile keeps a tie
        best_score = torch.where(better, score, best_score)
        best_code = torch.where(better, code + start, best_code)
    return best_code
