"""Meters against independent computations; sums over any split of a set."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.transforms import to_model, to_uint8
from pipeline.evaluate.protocol import RECONSTRUCTION, stamp
from pipeline.evaluate.reconstruction import MAX_PSNR, CodebookMeter, LatentMeter, PictureMeter, psnr, ssim
from pipeline.quantizers.base import count_codes, perplexity_of

CPU = torch.device("cpu")


def pictures(count: int, size: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures and noisy copies of them."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 3, size, size))
    noisy = np.clip(images + rng.normal(0, 20, images.shape), 0, 255)
    return torch.from_numpy(noisy.astype(np.uint8)), torch.from_numpy(images.astype(np.uint8))


def test_equal_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    restored, images = pictures(3)
    for i in range(3):
        a, b = (pixels[i].permute(1, 2, 0).numpy() for pixels in (restored, images))
        assert psnr(restored, images)[i].item() == pytest.approx(metrics.peak_signal_noise_ratio(b, a), abs=1e-3)
        expected = metrics.structural_similarity(
            b, a, channel_axis=2, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert ssim(restored, images)[i].item() == pytest.approx(expected, abs=1e-4)


def test_identical_pictures_are_perfect_and_finite() -> None:
    _, images = pictures(2)
    assert psnr(images, images).tolist() == [MAX_PSNR] * 2
    assert ssim(images, images).tolist() == pytest.approx([1.0] * 2)


def test_all_256_levels_survive_the_way_through_the_model_s_range() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_model(levels)), levels)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=4))
def test_averages_are_over_pictures_however_they_are_batched(sizes: list[int]) -> None:
    restored, images = pictures(max(sum(sizes), 1), size=12)
    whole, parts = PictureMeter(CPU), PictureMeter(CPU)
    whole.update(restored, images)
    cuts = sizes if sum(sizes) else [1]
    for a, b in zip(restored.split(cuts), images.split(cuts), strict=True):
        parts.update(a, b)
    assert parts.compute() == pytest.approx(whole.compute(), rel=1e-6)


def test_codebook_use_is_counted_over_the_whole_set() -> None:
    meter = CodebookMeter(8, CPU)
    for codes in ([[0, 1]], [[1, 2]], [[2, 0]]):
        meter.update(torch.tensor(codes))
    values = meter.compute()
    assert values["codebook_usage"] == 3 / 8
    assert values["codebook_perplexity"] == pytest.approx(3.0)


@pytest.mark.parametrize("counts", [[1, 1, 1, 1], [4, 0, 0, 0], [3, 1, 0, 0]])
def test_perplexity_is_the_exponential_of_the_entropy(counts: list[int]) -> None:
    shares = [c / sum(counts) for c in counts if c]
    expected = math.exp(-sum(p * math.log(p) for p in shares))
    assert perplexity_of(torch.tensor(counts, dtype=torch.float64)).item() == pytest.approx(expected)


def test_counts_equal_bincount() -> None:
    codes = torch.randint(0, 10, (3, 5, 5), generator=torch.Generator().manual_seed(0))
    assert torch.equal(count_codes(codes, 10), torch.bincount(codes.flatten(), minlength=10).float())


def test_latent_statistics_are_those_of_numpy() -> None:
    latents = torch.randn(6, 4, 5, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1
    meter = LatentMeter(4, CPU)
    for part in latents.split([1, 3, 2]):
        meter.update(part)
    mean, std = meter.compute()
    flat = latents.transpose(0, 1).flatten(1).numpy()
    np.testing.assert_allclose(mean, flat.mean(1), atol=1e-5)
    np.testing.assert_allclose(std, flat.std(1), rtol=1e-5)


def test_stamps_differ_with_the_data_and_name_the_measuring_code() -> None:
    first, second = (stamp(RECONSTRUCTION, digest, 1000, 32) for digest in ("a", "b"))
    assert first != second
    assert set(first["versions"]) == {"torch", "torchmetrics"}
