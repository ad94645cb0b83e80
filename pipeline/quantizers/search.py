"""Exact nearest-code search in float32 that never holds the whole distance matrix.

Vectors and codes are walked in tiles that fit a CPU's cache, so memory is bounded whatever the codebook and the batch.
On unit vectors the nearest code is also the one of the largest cosine, so one search serves both. Called by the
quantizers.
"""

import torch
from torch import Tensor

MAX_TILE_ELEMENTS = 1 << 24
"""Largest number of scores held at once on a device with many threads (64 MiB of float32)."""
CPU_TILE_ELEMENTS = 1 << 20
"""The same on a CPU (4 MiB): the scores are still in its cache when the minimum is looked for."""
MAX_TILE_CODES = 1 << 13
"""Largest number of codes in one tile."""
CPU_TILE_CODES = 1 << 12
"""The same on a CPU, for narrow codes, where looking for the minimum is the work."""
CPU_TILE_WIDE_CODES = 1 << 10
"""The same on a CPU, for codes of WIDE numbers and more, where the product is: it is fastest in square tiles."""
WIDE = 64


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
        elements, codes = MAX_TILE_ELEMENTS, MAX_TILE_CODES
        if vectors.device.type == "cpu":
            narrow = codebook.shape[1] < WIDE
            elements, codes = CPU_TILE_ELEMENTS, CPU_TILE_CODES if narrow else CPU_TILE_WIDE_CODES
        half_squares = codebook.square().sum(1) / 2  # [K]
        tiles = list(zip(codebook.split(codes), half_squares.split(codes), strict=True))
        rows = max(1, elements // min(len(codebook), codes))
        return torch.cat([_nearest_of_tile(part, tiles) for part in vectors.split(rows)])


def _nearest_of_tile(vectors: Tensor, tiles: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Running minimum of |e|^2 / 2 - z.e over the tiles of the codebook; |z|^2 is the same for all codes."""
    best_score = torch.full((len(vectors), 1), torch.inf, device=vectors.device)
    best_code = torch.zeros(len(vectors), 1, dtype=torch.long, device=vectors.device)
    start = 0
    for codes, half_squares in tiles:
        scores = torch.addmm(half_squares, vectors, codes.t(), alpha=-1)  # [n, k]
        code = scores.argmin(dim=1, keepdim=True)  # argmin and gather: many times faster than min with indices
        score = scores.gather(1, code)
        better = score < best_score  # strict: the earlier tile keeps a tie
        best_score = torch.where(better, score, best_score)
        best_code = torch.where(better, code + start, best_code)
        start += len(codes)
    return best_code[:, 0]
