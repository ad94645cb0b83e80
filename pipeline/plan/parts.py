"""The networks that one training step of each stage runs, measured. Called by `tessera plan` and `tessera doctor`.

A step is written here as what it computes, not how a stage drives it: the same networks on the same shapes.
"""

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config import UserError
from pipeline.losses.perceptual import network as perceptual_network
from pipeline.models.autoencoder import Autoencoder, AutoencoderConfig
from pipeline.models.discriminator import AnyDiscriminatorConfig, build_discriminator
from pipeline.models.latent_diffusion import LatentDiffusion, LatentDiffusionConfig, build_unet
from pipeline.models.text import PretrainedTextConfig, build_text_tower
from pipeline.plan.measure import Part, measure, shapes_only
from pipeline.torchvision_shim import declare_missing_operators


def autoencoder_parts(
    config: AutoencoderConfig,
    discriminator: AnyDiscriminatorConfig | None,
    perceptual: bool,
    image_size: int,
    bf16: bool,
) -> list[Part]:
    """First stage: the autoencoder, and the networks that judge its pictures of `image_size` pixels.

    Args:
        perceptual: count the perceptual distance too; its weights need not be there.
    """
    with shapes_only():
        model = Autoencoder(config)

        def run(num_images: int) -> Tensor:
            restored: Tensor = model(_pictures(num_images, image_size)).images
            return restored

        parts = [measure("autoencoder", model, run, bf16=bf16, averaged=True)]
        if discriminator:
            parts.append(_discriminator_part(build_discriminator(discriminator), image_size, bf16))
        if perceptual:
            parts.append(_perceptual_part(perceptual_network().requires_grad_(False), image_size))
    return parts


def diffusion_parts(
    config: LatentDiffusionConfig, autoencoder: AutoencoderConfig, image_size: int, stored: frozenset[str], bf16: bool
) -> list[Part]:
    """Second stage: the UNet with its text tower, and the frozen networks beside them.

    Args:
        autoencoder: the first stage, which encodes pictures and decodes previews.
        stored: which of "latents" and "text" come with the data and need not be computed.
    """
    with shapes_only():
        frozen = [_encoder_part(Autoencoder(autoencoder), image_size, "latents" in stored)]
        text = None
        if config.text.kind == "trainable":
            text = build_text_tower(config.text)
            length = text.context_length
        else:
            tower = _pretrained_shape(config.text)
            length = int(tower.context_length)
            frozen.append(_text_part(tower, length, "text" in stored))
        model = LatentDiffusion(build_unet(config), text)
        side = image_size // autoencoder.downsample_factor

        def run(num_images: int) -> Tensor:
            noised = torch.empty(num_images, model.unet.conv_in.in_channels, side, side)
            states = torch.empty(num_images, length, config.unet.context_dim)
            captions = _tokens(num_images, length) if text else states
            output: Tensor = model(noised, torch.zeros(num_images, dtype=torch.long), captions)
            return output

        return [measure("unet", model, run, bf16=bf16, averaged=True), *frozen]


def _encoder_part(model: Autoencoder, image_size: int, stored: bool) -> Part:
    """The frozen first stage; with stored latents it only waits for previews."""
    model.requires_grad_(False)
    return measure("autoencoder", model, None if stored else lambda n: model.encode_raw(_pictures(n, image_size)))


def _text_part(tower: nn.Module, length: int, stored: bool) -> Part:
    """The frozen text tower; with stored states it only waits for previews."""
    tower.requires_grad_(False)
    return measure("text", tower, None if stored else lambda n: tower(_tokens(n, length)))


def _discriminator_part(model: nn.Module, image_size: int, bf16: bool) -> Part:
    def run(num_images: int) -> Tensor:
        model.requires_grad_(False)  # the generator's turn: gradients at the pictures alone
        judged = model(_pictures(num_images, image_size).requires_grad_())
        model.requires_grad_(True)  # its own turn, on pictures and reconstructions
        return torch.cat([judged, model(_pictures(2 * num_images, image_size))])

    return measure("discriminator", model, run, bf16=bf16)


def _perceptual_part(network: Any, image_size: int) -> Part:
    def run(num_images: int) -> Tensor:
        restored = _pictures(num_images, image_size).requires_grad_()
        features = [network.net(x) for x in (restored, _pictures(num_images, image_size))]
        return torch.stack([(a - b).square().sum() for a, b in zip(*features, strict=True)])

    return measure("perceptual loss", network, run)


def _pretrained_shape(config: PretrainedTextConfig) -> Any:
    """open_clip's text transformer of that name, without its weights."""
    declare_missing_operators()
    from open_clip import get_model_config
    from open_clip.model import CLIPTextCfg
    from open_clip.transformer import TextTransformer

    settings = get_model_config(config.name)
    if settings is None:
        raise UserError(f"text.name: {config.name!r} is no open_clip model; see open_clip.list_models()")
    text = CLIPTextCfg(**settings["text_cfg"])
    return TextTransformer(text.context_length, text.vocab_size, text.width, text.heads, text.layers)


def _pictures(num_images: int, size: int) -> Tensor:
    return torch.empty(num_images, 3, size, size)


def _tokens(num_captions: int, length: int) -> Tensor:
    return torch.zeros(num_captions, length, dtype=torch.long)
