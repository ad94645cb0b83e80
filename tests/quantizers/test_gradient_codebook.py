"""Straight-through VQ: exact values, and gradients against the formulas of the paper."""

import pytest
import torch
from torch.nn import functional as F

from pipeline.quantizers import build_quantizer
from pipeline.quantizers.base import Quantizer, perplexity_of, straight_through
from pipeline.quantizers.gradient import GradientCodebookConfig


def quantizer(**options: object) -> Quantizer:
    config = GradientCodebookConfig(**{"num_codes": 7, "cosine": False, **options})
    built = build_quantizer(config, width=3, seed=1)
    built.embedding.weight.data.copy_(torch.randn(7, 3, generator=torch.Generator().manual_seed(2)))
    return built


def latents(seed: int = 3) -> torch.Tensor:
    return torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def test_forward_is_exactly_the_chosen_code() -> None:
    vq, z = quantizer(), latents()
    result = vq(z)
    assert torch.equal(result.latent, vq.lookup(result.codes))
    assert torch.equal(result.codes, vq.assign(z))
    assert result.latent.shape == z.shape and result.codes.shape == (2, 4, 5)


def test_gradient_passes_straight_through() -> None:
    z = latents()
    chosen = torch.randn_like(z)
    direction = torch.randn_like(z)
    (straight_through(chosen, z) * direction).sum().backward()
    assert torch.equal(z.grad, direction)


@pytest.mark.parametrize("legacy", [False, True])
def test_loss_and_gradients_are_those_of_the_paper_or_of_the_old_form(legacy: bool) -> None:
    beta = 0.25
    vq, z = quantizer(legacy=legacy, commitment_weight=beta), latents()
    result = vq(z)
    torch.stack(list(result.losses.values())).sum().backward()
    e = vq.lookup(result.codes).detach()
    on_encoder, on_codebook = (1.0, beta) if legacy else (beta, 1.0)
    difference = (z - e).detach()
    assert torch.allclose(z.grad, on_encoder * 2 * difference / z.numel(), atol=1e-7)
    expected = torch.zeros(7, 3).index_add_(0, result.codes.flatten(), -difference.permute(0, 2, 3, 1).reshape(-1, 3))
    assert torch.allclose(vq.embedding.weight.grad, on_codebook * 2 * expected / z.numel(), atol=1e-7)
    assert torch.allclose(sum(result.losses.values()), (1 + beta) * difference.square().mean())


def test_the_default_is_the_form_of_the_paper() -> None:
    assert GradientCodebookConfig().legacy is False


def test_cosine_compares_and_decodes_unit_vectors() -> None:
    vq, z = quantizer(cosine=True), latents()
    result = vq(z)
    similarity = F.normalize(z, dim=1).permute(0, 2, 3, 1).reshape(-1, 3) @ F.normalize(vq.embedding.weight, dim=1).t()
    assert torch.equal(result.codes.flatten(), similarity.argmax(dim=1))
    assert torch.allclose(result.latent.norm(dim=1), torch.ones(2, 4, 5))
    assert torch.equal(vq.assign(5 * z), result.codes)
    assert torch.allclose(vq.prepare(vq.prepare(z)), vq.prepare(z))


def test_perplexity_counts_codes_that_are_used_equally() -> None:
    vq = quantizer()
    maps = vq.embedding.weight.detach()[:4].t().reshape(1, 3, 2, 2)
    assert perplexity_of(vq(maps).usage).item() == pytest.approx(4.0)


def test_first_codes_come_from_the_seed() -> None:
    config = GradientCodebookConfig(num_codes=16)
    a, b, c = (build_quantizer(config, 4, seed).embedding.weight for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert a.abs().max() <= 1 / 16


def test_low_precision_around_it_does_not_reach_the_quantizer() -> None:
    vq, z = quantizer(), latents()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = vq(z)
    assert torch.equal(result.codes, vq(z).codes)
    assert all(loss.dtype == torch.float32 for loss in result.losses.values())
