"""Conversions: every tensor arrives, under a name that the other code knows, and computes the same."""

import pytest
import torch

from pipeline.config import UserError
from pipeline.models.autoencoder import Autoencoder, AutoencoderConfig
from pipeline.models.convert import (
    compvis_config,
    config_from_compvis,
    config_from_diffusers,
    diffusers_config,
    from_compvis,
    from_diffusers,
    from_llamagen,
    to_compvis,
    to_diffusers,
    to_llamagen,
)
from pipeline.models.convert.names import OWN_BUFFERS
from pipeline.quantizers.ema import EmaCodebookConfig
from pipeline.quantizers.gradient import GradientCodebookConfig
from pipeline.quantizers.kl import KlConfig
from pipeline.quantizers.lattice import FsqConfig
from pipeline.quantizers.simvq import SimVqConfig
from pipeline.torchvision_shim import declare_missing_operators


def config(**options: object) -> AutoencoderConfig:
    base = {
        "channels": 32,
        "channel_multipliers": (1, 2, 2),
        "num_res_blocks": 1,
        "attention_resolutions": (8,),
        "norm_groups": 32,
        "latent_channels": 5,
        "embedding_dim": 3,
        "resolution": 32,
        "quantizer": GradientCodebookConfig(num_codes=16, cosine=False),
    }
    return AutoencoderConfig(**(base | options))


VARIANTS = {
    "plain": config(),
    "no-middle-attention": config(mid_attention=False, attention_resolutions=()),
    "cosine": config(quantizer=GradientCodebookConfig(num_codes=16, cosine=True)),
    "simvq": config(quantizer=SimVqConfig(num_codes=16)),
    "moving-average": config(quantizer=EmaCodebookConfig(num_codes=16), norm_groups=8),
}


def trained(shape: AutoencoderConfig) -> Autoencoder:
    """With codes spread like the latents, so that no two are nearly as near."""
    model = Autoencoder(shape, seed=0).eval()
    if "quantize.embedding.weight" in model.state_dict():
        model.quantize.embedding.weight.data.normal_(generator=torch.Generator().manual_seed(1))
    if isinstance(shape.quantizer, EmaCodebookConfig):
        model.quantize.active.fill_(True)
    return model


def pictures() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1


def test_compvis_is_our_layout_without_our_buffers() -> None:
    model = trained(config())
    tensors = to_compvis(model.state_dict(), model.config)
    assert set(model.state_dict()) - set(tensors) == {name for name in OWN_BUFFERS if name in model.state_dict()}
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in tensors.items())


def test_a_compvis_checkpoint_comes_back_and_loses_only_what_is_for_training() -> None:
    model = trained(config())
    state = to_compvis(model.state_dict(), model.config)
    state |= {"loss.discriminator.main.0.weight": torch.zeros(1), "model_ema.decay": torch.zeros(())}
    fresh = Autoencoder(model.config, seed=9).eval()
    missing, unexpected = fresh.load_state_dict(from_compvis(state), strict=False)
    assert set(missing) <= set(OWN_BUFFERS) and not unexpected
    assert torch.equal(fresh(pictures()).images, model(pictures()).images)


def test_other_groups_than_theirs_are_refused() -> None:
    model = trained(VARIANTS["moving-average"])
    with pytest.raises(UserError, match="norm_groups is 8"):
        to_compvis(model.state_dict(), model.config)


@pytest.mark.parametrize("name", list(VARIANTS))
def test_diffusers_computes_the_same(name: str) -> None:
    declare_missing_operators()
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    model = trained(VARIANTS[name])
    arguments = {key: value for key, value in diffusers_config(model.config).items() if key != "_class_name"}
    theirs = diffusers.VQModel(**arguments).eval()
    theirs.load_state_dict(to_diffusers(model.state_dict(), model.config))
    with torch.no_grad():
        latent = theirs.encode(pictures()).latents
        assert torch.allclose(model.quantize.prepare(latent), model.encode_raw(pictures()), atol=1e-5)
        ours, judged = model(pictures()), theirs.quantize(model.encode_raw(pictures()))
        assert torch.equal(judged[2][2], ours.quantized.codes.flatten())
        assert torch.allclose(theirs(pictures()).sample, ours.images, atol=1e-5)


def test_a_vq_model_of_diffusers_is_taken_over_with_its_codes() -> None:
    declare_missing_operators()
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    arguments = diffusers_config(config())
    with torch.random.fork_rng():
        torch.manual_seed(4)
        theirs = diffusers.VQModel(**{k: v for k, v in arguments.items() if k != "_class_name"}).eval()
    theirs.quantize.embedding.weight.data.normal_(generator=torch.Generator().manual_seed(1))
    shape = config_from_diffusers(arguments)
    assert shape.quantizer.legacy  # type: ignore[union-attr]
    ours = Autoencoder(shape, seed=9).eval()
    missing, unexpected = ours.load_state_dict(from_diffusers(theirs.state_dict(), shape), strict=False)
    assert set(missing) <= set(OWN_BUFFERS) and not unexpected
    with torch.no_grad():
        result = ours(pictures())
        assert torch.allclose(result.images, theirs(pictures()).sample, atol=1e-5)
        ids = theirs.quantize(theirs.encode(pictures()).latents)[2][2]
        assert torch.equal(result.quantized.codes.flatten(), ids)


KL = config(quantizer=KlConfig(), embedding_dim=4, latent_channels=4)


@pytest.mark.parametrize("way", ["to", "from"])
def test_autoencoder_kl_of_diffusers_computes_the_same(way: str) -> None:
    declare_missing_operators()
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    ours = Autoencoder(KL, seed=5).eval()
    arguments = diffusers_config(KL)
    theirs = diffusers.AutoencoderKL(**{k: v for k, v in arguments.items() if k != "_class_name"}).eval()
    if way == "to":
        theirs.load_state_dict(to_diffusers(ours.state_dict(), KL))
    else:
        old = {n.replace("to_q", "query").replace("to_out.0", "proj_attn"): t for n, t in theirs.state_dict().items()}
        assert config_from_diffusers(arguments) == KL
        ours.load_state_dict(from_diffusers(old, KL), strict=False)
    with torch.no_grad():
        posterior = theirs.encode(pictures()).latent_dist
        assert torch.allclose(ours.encode_raw(pictures()), posterior.mean, atol=1e-5)
        result = ours(pictures(), noise := torch.randn(2, 4, 8, 8))
        drawn = posterior.mean + posterior.std * noise
        assert torch.allclose(result.images, theirs.decode(drawn).sample, atol=1e-5)
        divergence = result.quantized.losses["kl_loss"] * (3 * 32 * 32) / KL.quantizer.kl_weight  # type: ignore[union-attr]
        assert divergence.item() == pytest.approx(posterior.kl().mean().item(), rel=1e-4)


def test_llamagen_gets_every_tensor_and_gives_it_back() -> None:
    """The names are those of vq.md's table of LlamaGen@ce98ec4: its code is no package, so only names are compared."""
    model = trained(config(quantizer=GradientCodebookConfig(num_codes=16)))
    state = to_llamagen(model.state_dict(), model.config)
    assert {"decoder.mid.1.proj_out.weight", "encoder.conv_blocks.2.attn.0.q.weight", "quantize.codebook_used"} <= set(
        state
    )
    assert torch.equal(state["decoder.conv_blocks.0.res.1.conv1.weight"], model.decoder.up[2].block[1].conv1.weight)
    assert torch.equal(state["decoder.conv_blocks.1.upsample.conv.bias"], model.decoder.up[1].upsample.conv.bias)
    fresh = Autoencoder(model.config, seed=9).eval()
    fresh.load_state_dict(from_llamagen(state, model.config), strict=False)
    assert torch.allclose(fresh(pictures()).images, model(pictures()).images, atol=1e-5)


@pytest.mark.parametrize(
    "shape", [config(quantizer=GradientCodebookConfig(num_codes=16, cosine=False, legacy=True)), KL]
)
def test_a_compvis_config_comes_back(shape: AutoencoderConfig) -> None:
    assert config_from_compvis(compvis_config(shape)) == shape


def test_compvis_averages_are_taken_by_their_names_without_dots() -> None:
    state = {"encoder.conv_in.weight": torch.zeros(1), "model_ema.encoderconv_inweight": torch.ones(1)}
    assert from_compvis(state, averaged=True)["encoder.conv_in.weight"] == 1


def test_what_cannot_be_converted_is_refused() -> None:
    lattice = config(quantizer=FsqConfig(levels=(5, 5, 5)))
    with pytest.raises(UserError, match="quantizer fsq"):
        to_diffusers(Autoencoder(lattice).state_dict(), lattice)
    with pytest.raises(UserError, match="one width for both"):
        diffusers_config(config(quantizer=KlConfig()))
    young = Autoencoder(VARIANTS["moving-average"])
    with pytest.raises(UserError, match="not been placed"):
        to_diffusers(young.state_dict(), young.config)
    with pytest.raises(UserError, match="missing .*mid_block.attentions"):
        from_diffusers(to_diffusers(trained(VARIANTS["no-middle-attention"]).state_dict(), config()), config())
