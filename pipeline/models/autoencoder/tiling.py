"""Large pictures through the autoencoder piece by piece, so that memory is bounded by the piece.

Each piece is computed by itself and they are blended where they overlap. The result is not that of the whole picture:
GroupNorm and the attention in the middle see the piece alone. Called by `model` where `tile_pixels` is set.
"""

from collections.abc import Callable

import torch
from torch import Tensor

OVERLAP_SHARE = 4
"""Neighbouring tiles share one in so many of their pixels."""


def tiled(run: Callable[[Tensor], Tensor], x: Tensor, size: int, multiple: int, scale: float) -> Tensor:
    """`run` over overlapping tiles of `x`, each weighed by its distance from the tile's edge.

    Args:
        run: [B, C, h, w] to [B, C', h scale, w scale].
        x: [B, C, H, W]; what fits into one tile is run whole.
        size: side of a tile of `x`, a multiple of `multiple`, as H and W are.
        multiple: tiles begin at multiples of it.
        scale: side of the output over the side of the input.

    Returns:
        float32 [B, C', H scale, W scale].
    """
    height, width = x.shape[2:]
    if height <= size and width <= size:
        return run(x)
    overlap = size // OVERLAP_SHARE // multiple * multiple
    total, weights = torch.empty(0), torch.empty(0)
    for top in _starts(height, size, overlap):
        for left in _starts(width, size, overlap):
            part = run(x[:, :, top : top + size, left : left + size]).float()  # [B, C', h scale, w scale]
            if not total.numel():
                total = part.new_zeros(*part.shape[:2], round(height * scale), round(width * scale))
                weights = part.new_zeros(total.shape[2:])
            rows, columns = (_span(start, scale, side) for start, side in zip((top, left), part.shape[2:], strict=True))
            weight = torch.outer(*(_ramp(side, round(overlap * scale), x.device) for side in part.shape[2:]))
            total[:, :, rows, columns] += part * weight
            weights[rows, columns] += weight
    return total / weights


def _starts(length: int, size: int, overlap: int) -> list[int]:
    """First pixel of every tile along one side; the last tile ends with the picture."""
    if length <= size:
        return [0]
    return [*range(0, length - size, size - overlap), length - size]


def _span(start: int, scale: float, side: int) -> slice:
    first = round(start * scale)
    return slice(first, first + side)


def _ramp(side: int, overlap: int, device: torch.device) -> Tensor:
    """Weights [side] that rise over the overlap and fall again, nowhere 0."""
    distance = torch.arange(1, side + 1, device=device).float()
    return torch.minimum(distance, distance.flip(0)).clamp(max=overlap + 1)
