"""Conversions: every tensor arrives, under a name that the other code knows, and computes the same."""

import pytest
import torch

from pipeline.config import UserError
from pipeline.models.autoencoder import Autoencoder, AutoencoderConfig
from pipeline.models.convert import OWN_BUFFERS, diffusers_config, from_compvis, to_compvis, to_diffusers
from pipeline.quantizers.ema import EmaCodebookConfig
from pipeline.quantizers.gradient import GradientCodebookConfig
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
    "moving-average": config(quantizer=EmaCodebookConfig(num_codes=16), norm_groups=8),
}


def trained(shape: AutoencoderConfig) -> Autoencoder:
    """With codes spread like the latents, so that no two are nearly as near."""
    model = Autoencoder(shape, seed=0).eval()
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
def test_no_two_tensors_share_a_name_in_diffusers(name: str) -> None:
    model = trained(VARIANTS[name])
    ours = set(model.state_dict()) - set(OWN_BUFFERS)
    assert len(to_diffusers(model.state_dict(), model.config)) == len(ours)


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
        assert torch.allclose(model.quantize.prepare(latent), model.encode_raw(pictures()), atol=1e-4)
        assert torch.allclose(theirs.decode(latent).sample, model(pictures()).images, atol=1e-4)
