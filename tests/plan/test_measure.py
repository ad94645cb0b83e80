"""Measurements on shapes alone equal those on real tensors, and the textbook's."""

import torch
from torch import nn

from pipeline.models.autoencoder import AutoencoderConfig
from pipeline.models.discriminator import DiscriminatorConfig, FeatureDiscriminatorConfig
from pipeline.models.latent_diffusion import LatentDiffusionConfig
from pipeline.models.text import PretrainedTextConfig, TrainableTextConfig
from pipeline.models.unet import UNet, UNetConfig
from pipeline.plan.measure import flop_counter, measure, shapes_only
from pipeline.plan.parts import autoencoder_parts, diffusion_parts

UNET = UNetConfig(
    latent_channels=4, channels=32, channel_multipliers=(1,), num_res_blocks=1, head_dim=16, context_dim=32
)
AUTOENCODER = AutoencoderConfig(
    channels=32, channel_multipliers=(1, 2), num_res_blocks=1, mid_attention=False, latent_channels=4, embedding_dim=4
)


def test_linear_layers_by_hand() -> None:
    with shapes_only():
        net = nn.Sequential(nn.Linear(8, 16, bias=False), nn.Linear(16, 4, bias=False))
        part = measure("net", net, lambda n: net(torch.empty(n, 8)))
    forward = 2 * (8 * 16 + 16 * 4)
    backward = 2 * (8 * 16) + 2 * 2 * (16 * 4)  # the input takes no gradient
    assert part.flops == forward + backward
    assert part.image_bytes == 4 * (8 + 16)  # the inputs of both layers
    assert (part.num_trained, part.num_frozen, part.cast_bytes) == (8 * 16 + 16 * 4, 0, 0)


def test_autocast_keeps_a_copy_of_the_weights_whatever_the_batch() -> None:
    with shapes_only():
        net = nn.Linear(64, 64, bias=False)
        part = measure("net", net, lambda n: net(torch.empty(n, 64, requires_grad=True)), bf16=True)
    assert part.cast_bytes == 2 * 64 * 64
    assert part.image_bytes == 2 * 64


def test_shapes_count_what_real_tensors_count() -> None:
    def inputs(n: int) -> tuple[torch.Tensor, ...]:
        return torch.zeros(n, 4, 8, 8), torch.zeros(n, dtype=torch.long), torch.zeros(n, 5, 32)

    real = UNet(UNET)
    with flop_counter() as counter:
        real(*inputs(3)).sum().backward()
    with shapes_only():
        fake = UNet(UNET)
        part = measure("unet", fake, lambda n: fake(*inputs(n)))
    assert part.num_trained == sum(p.numel() for p in real.parameters())
    assert 3 * part.flops == counter.get_total_flops()


def test_parts_of_the_first_stage() -> None:
    alone = autoencoder_parts(AUTOENCODER, None, False, image_size=32, bf16=False)
    game = autoencoder_parts(AUTOENCODER, DiscriminatorConfig(channels=16), False, image_size=32, bf16=False)
    assert [part.name for part in game] == ["autoencoder", "discriminator"]
    assert alone == game[:1]
    assert all(part.num_trained > 0 and part.flops > 0 and part.image_bytes > 0 for part in game)
    assert [part.averaged for part in game] == [True, False]


def test_the_perceptual_distance_is_counted_without_its_weights() -> None:
    part = autoencoder_parts(AUTOENCODER, None, True, image_size=256, bf16=False)[-1]
    assert part.name == "perceptual loss" and part.num_trained == 0
    assert 14.7e6 < part.num_frozen < 14.8e6  # VGG16's convolutions, and 1,472 calibrated weights
    assert 3 * 40e9 < part.flops < 3 * 41e9  # 40.1 GFLOP a picture: two forwards, and back to the reconstruction


def test_a_judge_of_frozen_features_is_counted_without_its_weights() -> None:
    judge = autoencoder_parts(AUTOENCODER, FeatureDiscriminatorConfig(), False, image_size=64, bf16=False)[-1]
    assert judge.name == "discriminator" and judge.num_trained > 0 and judge.flops > 0


def test_parts_of_the_second_stage() -> None:
    config = LatentDiffusionConfig(unet=UNET, text=TrainableTextConfig(width=32, num_layers=1, num_heads=2))
    unet, first = diffusion_parts(config, AUTOENCODER, 16, frozenset(), bf16=True)
    assert first.flops > 0 and (first.num_trained, first.image_bytes) == (0, 0)
    stored_unet, stored_first = diffusion_parts(config, AUTOENCODER, 16, frozenset({"latents"}), bf16=True)
    assert stored_unet == unet and stored_first.flops == 0


def test_a_pretrained_tower_is_counted_without_its_weights() -> None:
    config = LatentDiffusionConfig(
        unet=UNET.model_copy(update={"context_dim": 768}), text=PretrainedTextConfig(name="ViT-L-14", weights="none")
    )
    names = {part.name: part for part in diffusion_parts(config, AUTOENCODER, 16, frozenset({"latents"}), bf16=False)}
    # CLIP ViT-L/14: 49408 x 768 token and 77 x 768 position embeddings, 12 layers, and a projection to 512 here
    assert 122e6 < names["text"].num_frozen < 124e6
    assert names["text"].flops > 0
