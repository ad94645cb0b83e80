"""Meters of a validation pass of the autoencoder: picture quality, use of the codebook, statistics of the latents.

Each adds up sums in float64 and reduces them over ranks once, at the end, so the result is that of one process over
the whole set whatever the ranks and batch sizes. Called by the autoencoder's stage and the evaluation command.
"""

import torch
from torch import Tensor

from pipeline.distributed.process import all_reduce_sum
from pipeline.quantizers.base import count_codes, perplexity_of
from pipeline.torchvision_shim import declare_missing_operators

MAX_PSNR = 100.0
"""dB given to a perfect reconstruction, whose own value is infinite."""
PEAK = 255.0
WINDOW_RADIUS = 5
"""Half the side of SSIM's Gaussian window of 11 x 11 pixels."""


class PictureMeter:
    """PSNR and SSIM per picture on 8-bit pixels, averaged over pictures."""

    def __init__(self, device: torch.device) -> None:
        self.totals = torch.zeros(3, dtype=torch.float64, device=device)  # PSNR, SSIM, pictures

    def update(self, restored: Tensor, images: Tensor) -> None:
        """Add reconstructions and pictures, both uint8 [B, 3, H, W]."""
        if not len(images):
            return
        assert restored.dtype == images.dtype == torch.uint8
        self.totals[0] += psnr(restored, images).double().sum()
        self.totals[1] += ssim(restored, images).double().sum()
        self.totals[2] += len(images)

    def compute(self) -> dict[str, float]:
        """`psnr` in dB and `ssim`; collective."""
        total_psnr, total_ssim, count = all_reduce_sum(self.totals.clone()).tolist()
        return {"psnr": total_psnr / count, "ssim": total_ssim / count}


class CodebookMeter:
    """How often each code is used over a whole set."""

    def __init__(self, num_codes: int, device: torch.device) -> None:
        self.counts = torch.zeros(num_codes, dtype=torch.float64, device=device)

    def update(self, codes: Tensor) -> None:
        """Add codes, int64 of any shape."""
        self.counts += count_codes(codes, len(self.counts))

    def compute(self) -> dict[str, float]:
        """`codebook_usage`, the share of codes used at all, and `codebook_perplexity`; collective."""
        if not len(self.counts):  # a KL bottleneck has none
            return {}
        counts = all_reduce_sum(self.counts.clone())
        usage = (counts > 0).double().mean()
        return {"codebook_usage": usage.item(), "codebook_perplexity": perplexity_of(counts).item()}


class LatentMeter:
    """Mean and standard deviation of each channel of raw latents."""

    def __init__(self, num_channels: int, device: torch.device) -> None:
        self.totals = torch.zeros(3, num_channels, dtype=torch.float64, device=device)  # count, sum, sum of squares

    def update(self, latent: Tensor) -> None:
        """Add raw latents [B, d, h, w]."""
        values = latent.double().transpose(0, 1).flatten(1)  # [d, B h w]
        total, squares = values.sum(1), values.square().sum(1)  # [d]
        self.totals += torch.stack([torch.full_like(total, values.shape[1]), total, squares])

    def compute(self) -> tuple[Tensor, Tensor]:
        """(mean, std) float32 [d], std over the population; collective."""
        count, total, squares = all_reduce_sum(self.totals.clone())
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=1e-12)
        return mean.float(), variance.sqrt().float()


def psnr(restored: Tensor, images: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB, at most MAX_PSNR: uint8 [B, 3, H, W] twice -> float32 [B]."""
    error = (restored.float() - images.float()).square().mean(dim=(1, 2, 3))
    return (10.0 * torch.log10(PEAK**2 / error)).clamp(max=MAX_PSNR)


def ssim(restored: Tensor, images: Tensor) -> Tensor:
    """Structural similarity of each picture (Wang et al., 2004): uint8 [B, 3, H, W] twice -> float32 [B].

    The mean is over the places whose whole window lies in the picture, as in the paper's own code and scikit-image.
    """
    assert min(images.shape[2:]) > 2 * WINDOW_RADIUS, f"SSIM needs more than {2 * WINDOW_RADIUS} pixels a side"
    declare_missing_operators()
    from torchmetrics.functional.image import structural_similarity_index_measure

    _, similarity = structural_similarity_index_measure(
        restored.float(), images.float(), data_range=PEAK, sigma=1.5, reduction="none", return_full_image=True
    )  # [B, 3, H, W], mirrored beyond the edge
    inside = slice(WINDOW_RADIUS, -WINDOW_RADIUS)
    return similarity[:, :, inside, inside].mean(dim=(1, 2, 3))  # [B]
