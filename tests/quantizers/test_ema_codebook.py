"""Moving-average codebook: the averages, the fit, the revival, and equality over ranks."""

import numpy as np
import pytest
import torch

from pipeline.distributed.process import start
from pipeline.quantizers.ema import EmaCodebookConfig, EmaQuantizer
from pipeline.quantizers.kmeans import draw_vectors, fit_codes
from tests.ranks import run_ranks

WIDTH = 3


def quantizer(**options: object) -> EmaQuantizer:
    return EmaQuantizer(EmaCodebookConfig(**{"num_codes": 8, **options}), WIDTH, seed=5)


def latents(step: int, batch: int = 4) -> torch.Tensor:
    return torch.randn(batch, WIDTH, 4, 4, generator=torch.Generator().manual_seed(step)) + 2


def train(vq: EmaQuantizer, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        z = latents(step)
        vq.update(z, vq(z).codes, step)


def test_before_the_start_step_latents_pass_unchanged_and_cost_nothing() -> None:
    vq = quantizer(start_step=2)
    z = latents(0)
    before = vq.embedding.weight.clone()
    vq.update(z, vq(z).codes, 0)
    result = vq(z)
    assert torch.equal(result.latent, z) and result.losses["commitment_loss"] == 0
    assert torch.equal(vq.embedding.weight, before)


def test_one_step_of_the_averages_is_the_formula() -> None:
    vq = quantizer(decay=0.9, revive_below_share=0.0)
    train(vq, 1)
    counts, sums = vq.embedding.counts.clone(), vq.embedding.sums.clone()
    z = latents(1)
    codes = vq(z).codes
    vq.update(z, codes, 1)
    vectors = z.permute(0, 2, 3, 1).reshape(-1, WIDTH)
    for k in range(8):
        mine = vectors[codes.flatten() == k]
        n, m = 0.9 * counts[k] + 0.1 * len(mine), 0.9 * sums[k] + 0.1 * mine.sum(0)
        assert vq.embedding.counts[k] == pytest.approx(n.item(), rel=1e-5)
        assert torch.allclose(vq.embedding.weight[k], m / n, rtol=1e-3, atol=1e-4)


def test_codes_stay_within_the_range_of_the_vectors() -> None:
    vq = quantizer(num_codes=40)
    train(vq, 1)
    for step in range(1, 30):
        z = latents(step)
        vq.update(z, vq(z).codes, step)
        assert vq.embedding.weight.min() >= -3 and vq.embedding.weight.max() <= 7


def test_forward_alone_changes_nothing() -> None:
    vq = quantizer()
    train(vq, 3)
    before = {name: buffer.clone() for name, buffer in vq.named_buffers()}
    vq(latents(9))
    assert all(torch.equal(buffer, before[name]) for name, buffer in vq.named_buffers())


def test_the_fit_finds_separated_clusters() -> None:
    centres = torch.tensor([[0.0, 0, 0], [20, 0, 0], [0, 20, 0], [0, 0, 20]])
    noise = 0.01 * torch.randn(400, WIDTH, generator=torch.Generator().manual_seed(0))
    vectors = centres.repeat(100, 1) + noise
    codes, counts = fit_codes(vectors, 1, 40, seed=0)
    error = torch.cdist(vectors, codes).min(dim=1).values
    assert error.max() < 0.1
    assert counts.sum() == 400


def test_codes_out_of_use_come_back_and_stay() -> None:
    vq = quantizer(num_codes=4, decay=0.5, revive_every_steps=10, revive_below_share=0.1)
    train(vq, 1)
    vq.embedding.weight[2] = vq.embedding.sums[2] = 1e3  # a code far from every vector
    vq.embedding.sums[2] *= vq.embedding.counts[2]
    train(vq, 10, first=1)
    assert vq.embedding.weight[2].abs().max() < 10
    revived = vq.embedding.weight[2].clone()
    z = latents(11)
    vq.update(z, vq(z).codes, 11)
    assert (vq.embedding.weight[2] - revived).norm() < 3
    assert vq.embedding.counts[2] > 0


def test_draws_repeat_nothing_before_all_are_drawn() -> None:
    vectors = torch.arange(10.0)[:, None]
    assert sorted(draw_vectors(vectors, 2, 10, seed=0, step=0).flatten().tolist()) == list(range(10))
    assert sorted(draw_vectors(vectors, 2, 20, seed=0, step=0).flatten().tolist()) == sorted([*range(10)] * 2)
    assert not torch.equal(draw_vectors(vectors, 2, 10, 0, 0), draw_vectors(vectors, 2, 10, 0, 1))


def shared_codebook(steps: int) -> np.ndarray:
    """The codebook after some steps on this rank's part of the same global batches."""
    process = start()
    vq = quantizer(num_codes=16, revive_every_steps=3, revive_below_share=0.5)
    for step in range(steps):
        z = latents(step, batch=4)[process.rank :: process.world_size]  # as the loader deals them
        vq.update(z, vq(z).codes, step)
    return vq.embedding.weight.numpy()


@pytest.mark.parametrize("num_ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_learn_the_codebook_of_one(num_ranks: int) -> None:
    alone = shared_codebook(12)
    first, *others = run_ranks(shared_codebook, num_ranks, 12)
    assert all(np.array_equal(first, other) for other in others)
    np.testing.assert_allclose(first, alone, atol=1e-5)
