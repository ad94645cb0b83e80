"""The autoencoder: shapes, layout, exact round trips, normalisation, determinism."""

import pytest
import torch

from pipeline.config import UserError, parse_config
from pipeline.models.autoencoder import Autoencoder, AutoencoderConfig
from pipeline.models.blocks import AttnBlock, Downsample
from pipeline.quantizers.ema import EmaCodebookConfig
from pipeline.quantizers.gradient import GradientCodebookConfig

CODEBOOKS = [
    GradientCodebookConfig(num_codes=16, cosine=False),
    GradientCodebookConfig(num_codes=16, cosine=True),
    EmaCodebookConfig(num_codes=16),
    EmaCodebookConfig(num_codes=16, cosine=True),
]


def small(**options: object) -> AutoencoderConfig:
    base = {
        "channels": 8,
        "channel_multipliers": (1, 2),
        "num_res_blocks": 1,
        "norm_groups": 4,
        "latent_channels": 5,
        "embedding_dim": 3,
        "resolution": 16,
        "quantizer": CODEBOOKS[0],
    }
    return AutoencoderConfig(**(base | options))


def pictures(batch: int = 2, height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def trained(config: AutoencoderConfig) -> Autoencoder:
    """With a codebook in use, and statistics other than 0 and 1."""
    model = Autoencoder(config, seed=1)
    result = model(pictures())
    model.quantize.update(result.latent.detach(), result.quantized.codes, 0)
    model.latent_mean.copy_(torch.tensor([0.5, -1.0, 2.0]))
    model.latent_std.copy_(torch.tensor([0.1, 2.0, 3.0]))
    return model.eval()


def test_shapes_of_everything_that_forward_gives() -> None:
    result = Autoencoder(small())(pictures(2, 16, 24))
    assert result.images.shape == (2, 3, 16, 24)
    assert result.last_hidden.shape == (2, 8, 16, 24)
    assert result.latent.shape == result.quantized.latent.shape == (2, 3, 8, 12)
    assert result.quantized.codes.shape == (2, 8, 12)
    assert small().latent_shape == (3, 8, 8)


@pytest.mark.parametrize("codebook", CODEBOOKS, ids=lambda c: f"{c.kind}-{c.cosine}")
def test_codes_are_the_same_way_back_as_forward(codebook: object) -> None:
    model = trained(small(quantizer=codebook))
    images = pictures()
    with torch.no_grad():
        restored = model(images).images
        assert torch.allclose(model.decode_indices(model.encode_indices(images)), restored, atol=1e-6)
        assert torch.allclose(model.decode(model.encode(images)), restored, atol=1e-4)


def test_decode_quantises_what_it_is_given() -> None:
    model = trained(small())
    latent = torch.randn(1, 3, 8, 8)
    codes = model.quantize.assign(model.denormalise(latent))
    assert torch.allclose(model.decode(latent), model.decode_indices(codes))


def test_normalised_latents_are_raw_ones_shifted_and_scaled_per_channel() -> None:
    model = trained(small())
    raw, normal = model.encode_raw(pictures()), model.encode(pictures())
    assert torch.allclose((raw[:, 2] - 2.0) / 3.0, normal[:, 2], atol=1e-6)
    assert torch.allclose(model.denormalise(normal), raw, atol=1e-5)


@pytest.mark.parametrize("codebook", CODEBOOKS, ids=lambda c: f"{c.kind}-{c.cosine}")
def test_every_codebook_trains_saves_and_loads(codebook: object) -> None:
    config = small(quantizer=codebook)
    model = trained(config).train()
    optimizer = torch.optim.Adam(model.parameters())
    result = model(pictures())
    (result.images.square().mean() + sum(result.quantized.losses.values())).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    optimizer.step()
    copy = Autoencoder(config, seed=9)
    copy.load_state_dict(model.state_dict())
    assert torch.equal(copy(pictures()).images, model(pictures()).images)


def test_equal_seeds_give_equal_networks_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    a, b, c = (Autoencoder(small(), seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["encoder.conv_in.weight"], c["encoder.conv_in.weight"])


def test_names_are_those_of_the_taming_layout() -> None:
    names = set(Autoencoder(small(attention_resolutions=(8,))).state_dict())
    wanted = {
        "encoder.conv_in.weight",
        "encoder.down.0.block.0.norm1.weight",
        "encoder.down.0.downsample.conv.bias",
        "encoder.down.1.block.0.nin_shortcut.weight",
        "encoder.down.1.attn.0.proj_out.weight",
        "encoder.mid.block_1.conv2.weight",
        "encoder.mid.attn_1.q.weight",
        "encoder.norm_out.weight",
        "decoder.up.1.upsample.conv.weight",
        "decoder.up.1.attn.1.k.weight",
        "decoder.up.0.block.1.conv1.weight",
        "decoder.conv_out.bias",
        "quant_conv.weight",
        "post_quant_conv.bias",
    }
    assert wanted <= names
    unwanted = ("decoder.up.0.upsample", "down.1.downsample", "up.0.attn")
    assert not any(part in name for name in names for part in unwanted)


@pytest.mark.parametrize(
    ("options", "encoder_keys", "decoder_keys"),
    [
        ({"channel_multipliers": (1, 1, 2, 2, 4), "attention_resolutions": (16,)}, 144, 194),
        ({"channel_multipliers": (1, 2, 2, 4), "attention_resolutions": (32,)}, 126, 168),
        ({"channel_multipliers": (1, 2, 4)}, 88, 112),
    ],
    ids=["f16", "f8", "f4"],
)
def test_number_of_tensors_equals_the_published_networks(options: dict, encoder_keys: int, decoder_keys: int) -> None:
    config = small(channels=32, num_res_blocks=2, norm_groups=32, resolution=256, **options)
    names = Autoencoder(config).state_dict()
    assert sum(name.startswith("encoder.") for name in names) == encoder_keys
    assert sum(name.startswith("decoder.") for name in names) == decoder_keys


def test_downsampling_pads_below_and_at_the_right_only() -> None:
    layer = Downsample(1)
    torch.nn.init.ones_(layer.conv.weight)
    torch.nn.init.zeros_(layer.conv.bias)
    assert layer(torch.ones(1, 1, 4, 4)).flatten().tolist() == [9, 6, 6, 4]


def test_attention_is_softmax_over_all_pixels_with_one_head() -> None:
    block = AttnBlock(4, 2)
    x = torch.randn(2, 4, 3, 5)
    h = block.norm(x)
    q, k, v = (layer(h).flatten(2) for layer in (block.q, block.k, block.v))  # [B, C, HW]
    weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) * 4**-0.5, dim=2)
    expected = x + block.proj_out(torch.einsum("bij,bcj->bci", weights, v).reshape(x.shape))
    assert torch.allclose(block(x), expected, atol=1e-5)


def test_channels_last_and_an_empty_batch_are_welcome() -> None:
    model = trained(small())
    images = pictures()
    lasting = images.contiguous(memory_format=torch.channels_last)
    assert torch.allclose(model(lasting).images, model(images).images, atol=1e-5)
    with torch.no_grad():
        assert model(images[:0]).images.shape == (0, 3, 16, 16)


@pytest.mark.parametrize(
    ("options", "word"), [({"norm_groups": 3}, "norm_groups 3"), ({"resolution": 15}, "resolution 15")]
)
def test_shapes_that_do_not_fit_are_refused(options: dict, word: str) -> None:
    with pytest.raises(UserError, match=word):
        parse_config(small().model_dump() | options, AutoencoderConfig, source="x.yaml")
