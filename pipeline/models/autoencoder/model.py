"""The VQ autoencoder, first stage of latent diffusion: pictures to a small latent map and back.

The latent of the second stage is the continuous one before quantisation, normalised per channel by
buffers that the validation pass sets; quantisation belongs to `decode`. Pictures are float in [-1, 1].
Shapes: B pictures, f = downsample_factor, d = embedding_dim. Called by both stages, the sampler and precomputation.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.config import UserError
from pipeline.models.autoencoder.coders import Decoder, Encoder, Level
from pipeline.models.autoencoder.config import AutoencoderConfig
from pipeline.models.autoencoder.tiling import tiled
from pipeline.quantizers import Quantized, build_quantizer


class Reconstruction(NamedTuple):
    """What one training forward gives. A tuple, as `Quantized` is."""

    images: Tensor
    """float32 [B, 3, H, W], near [-1, 1]."""
    last_hidden: Tensor
    """[B, C, H, W]: input of the last convolution, for the adaptive weight of the adversarial loss."""
    latent: Tensor
    """float32 [B, d, H/f, W/f]: raw latents before quantisation."""
    quantized: Quantized
    """Codes, losses and usage."""


class Autoencoder(nn.Module):
    """Encoder, codebook, decoder, and the statistics of the latents.

    Args:
        config: shape of the network.
        seed: of the first weights and of the draws of the codebook; equal seeds give equal networks.
    """

    latent_mean: Tensor
    latent_std: Tensor
    tile_pixels: int | None = None
    """Side of the tiles in which `encode` and `decode` take pictures that are larger; a multiple of f. None: whole."""

    def __init__(self, config: AutoencoderConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = Encoder(config)
            moments = config.num_moments
            self.quant_conv = nn.Conv2d(moments * config.latent_channels, moments * config.embedding_dim, 1)
            self.post_quant_conv = nn.Conv2d(config.embedding_dim, config.latent_channels, 1)
            self.decoder = Decoder(config)
        self.quantize = build_quantizer(config.quantizer, config.embedding_dim, seed, 3 * config.downsample_factor**2)
        self.register_buffer("latent_mean", torch.zeros(config.embedding_dim))
        self.register_buffer("latent_std", torch.ones(config.embedding_dim))

    @property
    def downsample_factor(self) -> int:
        """Pixels of the picture for one place of the latent, along one side."""
        return self.config.downsample_factor

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Reconstruction:  # [B, 3, H, W], [B, d, h, w]
        moments = self._moments(images)  # [B, d, h, w], for KL [B, 2 d, h, w]
        latent = self.quantize.prepare(moments)  # [B, d, h, w]
        quantized = self.quantize(moments, noise)  # [B, d, h, w]
        hidden, restored = self.decoder(self.post_quant_conv(quantized.latent))  # [B, C, H, W], [B, 3, H, W]
        return Reconstruction(restored, hidden, latent, quantized)

    def checkpointing(self, on: bool) -> None:
        """Whether training recomputes the inside of every level going backward, in place of keeping it."""
        for level in self._levels():
            level.recompute = on

    def compile_levels(self, backend: str = "inductor") -> None:
        """Compile every level of both networks, in place: names in the state dict stay as they are."""
        for level in self._levels():
            level.compile(backend=backend)

    def _levels(self) -> Iterator[Level]:
        return (module for module in self.modules() if isinstance(module, Level))

    @property
    def has_statistics(self) -> bool:
        """False while no validation has measured the latents: their mean and std are then still 0 and 1."""
        return bool(self.latent_mean.any() or (self.latent_std != 1).any())

    def take_in_tiles(self, pixels: int | None) -> None:
        """Encode and decode pictures that are larger than `pixels` in tiles of that side; None takes every one whole.

        Raises:
            UserError: a side that the levels cannot halve.
        """
        if pixels is not None and (pixels <= 0 or pixels % self.downsample_factor):
            raise UserError(
                f"tile {pixels}: take a multiple of {self.downsample_factor}, such as {self.config.resolution}"
            )
        self.tile_pixels = pixels

    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures [B, 3, H, W] to their reconstructions and codes [B, h, w]; no codes from a KL bottleneck."""
        latent = self.encode_raw(images)
        codes = self.quantize.assign(latent) if self.quantize.num_codes else latent.new_zeros(0, dtype=torch.long)
        return self.decode_raw(latent), codes

    def encode_raw(self, images: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [-1, 1] to float32 latents [B, d, h, w], before quantisation and normalisation."""
        return self.quantize.prepare(self._in_tiles(self._moments, images, 1, 1 / self.downsample_factor))

    def encode(self, images: Tensor) -> Tensor:
        """Pictures to normalised latents: mean 0, standard deviation 1 per channel over the validation set."""
        return self.normalise(self.encode_raw(images))

    def decode(self, latent: Tensor) -> Tensor:
        """Normalised latents [B, d, h, w] to pictures [B, 3, H, W]; each vector first becomes its nearest code."""
        return self.decode_raw(self.denormalise(latent))

    def decode_raw(self, latent: Tensor) -> Tensor:
        """Raw latents [B, d, h, w], as `encode_raw` gives them, to pictures [B, 3, H, W]."""
        return self._restore(self.quantize.snap(latent))

    def encode_indices(self, images: Tensor) -> Tensor:
        """Pictures to codes: int64 [B, h, w]."""
        return self.quantize.assign(self.encode_raw(images))

    def decode_indices(self, codes: Tensor) -> Tensor:
        """Codes int64 [B, h, w] to pictures [B, 3, H, W]."""
        return self._restore(self.quantize.lookup(codes))

    def normalise(self, latent: Tensor) -> Tensor:
        """Raw to normalised latents [B, d, h, w]: the only place where latents are scaled."""
        return (latent - _per_channel(self.latent_mean)) / _per_channel(self.latent_std)

    def denormalise(self, latent: Tensor) -> Tensor:
        """Normalised to raw latents [B, d, h, w]."""
        return latent * _per_channel(self.latent_std) + _per_channel(self.latent_mean)

    def _restore(self, codes: Tensor) -> Tensor:
        return self._in_tiles(self._pictures, codes, self.downsample_factor, self.downsample_factor)

    def _in_tiles(self, run: Callable[[Tensor], Tensor], x: Tensor, pixels: int, scale: float) -> Tensor:
        """`run` of the whole, or of tiles; a place of `x` is `pixels` of the picture."""
        if self.tile_pixels is None:
            return run(x)
        return tiled(run, x, self.tile_pixels // pixels, self.downsample_factor // pixels, scale)

    def _moments(self, images: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(images))  # [B, d, h, w], for KL [B, 2 d, h, w]

    def _pictures(self, codes: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(codes))[1]  # [B, 3, H, W]


def _per_channel(values: Tensor) -> Tensor:
    return values[:, None, None]
