"""The entropy penalty of a codebook: each vector sure of its code, all codes in use (MAGVIT-v2, appendix A.1).

Exact over the global batch: the mean assignment is averaged over ranks before its entropy is taken, and the gradients,
once averaged over ranks as engines do, are those of one process with the whole batch. Memory is bounded: blocks of
vectors are recomputed going backward, so no [N, K] stands. Called by the quantizers, in training only.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pipeline.distributed.process import all_reduce_mean

MAX_BLOCK_ELEMENTS = 1 << 22
"""Largest number of probabilities held at once (16 MiB of float32, a few times over)."""
EPSILON = 1e-5
"""Inside the logarithm of the mean assignment."""


def entropy_penalty(vectors: Tensor, table: Tensor, temperature: float) -> Tensor:
    """mean_n H(p_n) - H(mean_n p_n) for p_n = softmax_k(-|z_n - e_k|^2 / temperature); scalar. Collective.

    Args:
        vectors: float [N, d], as many on each rank.
        table: codes [K, d].
    """
    rows = max(1, MAX_BLOCK_ELEMENTS // len(table))
    entropy, assigned = vectors.new_zeros(()), vectors.new_zeros(len(table))
    for block in vectors.split(rows):
        of_block, shares = checkpoint(_block, block, table, temperature, use_reentrant=False)
        entropy, assigned = entropy + of_block, assigned + shares
    local = assigned / len(vectors)  # [K]
    mean = local + (all_reduce_mean(local.detach().clone()) - local.detach())  # of all ranks; gradient of this one
    return entropy / len(vectors) + (mean * (mean + EPSILON).log()).sum()


def _block(vectors: Tensor, table: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Sum of the entropies, and sum of the probabilities [K], of some vectors."""
    logits = (2 * vectors @ table.t() - table.square().sum(1)) / temperature  # [n, K]; |z|^2 is the same for all codes
    log_p = torch.log_softmax(logits, dim=1)
    p = log_p.exp()
    return -(p * log_p).sum(), p.sum(0)
