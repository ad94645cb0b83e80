"""Golden numbers of the original code: the autoencoder, its losses, lambda and gradients, with weights by formula.

How `compvis_golden.json` was made, once: from CompVis/taming-transformers@3ba01b2 the Encoder, Decoder,
VectorQuantizer2 (`legacy` True and False) and VQLPIPSWithDiscriminator, from CompVis/latent-diffusion@a506df5 its own
Encoder and Decoder with `attn_type: none` and DiagonalGaussianDistribution, on torch 2.13; state dicts were filled by
`tests.formula.formula_tensors`, pictures are `formula(shape, 100)` and, of odd sides, `formula(shape, 101)`. LPIPS was
replaced by zero and the discriminator by one 4 x 4 convolution of stride 2, so that the numbers are of the losses
themselves. `latent`, `picture`, `mean` are every n-th element, six of them; `codes` are hexadecimal digits.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.losses.adversarial import adaptive_weight, discriminator_loss, generator_loss
from pipeline.models.autoencoder import Autoencoder, AutoencoderConfig
from pipeline.models.convert import from_compvis, to_compvis
from pipeline.quantizers.gradient import GradientCodebookConfig
from pipeline.quantizers.kl import KlConfig
from tests.formula import formula, formula_tensors

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "compvis_golden.json").read_text())
SHAPE = {"channels": 32, "num_res_blocks": 1, "latent_channels": 4, "embedding_dim": 4, "resolution": 16}


def filled(config: AutoencoderConfig) -> Autoencoder:
    model = Autoencoder(config)
    theirs = formula_tensors(to_compvis(model.state_dict(), config))
    model.load_state_dict(from_compvis(theirs, config), strict=False)
    return model


def vq(legacy: bool) -> Autoencoder:
    codebook = GradientCodebookConfig(num_codes=16, cosine=False, legacy=legacy)
    return filled(
        AutoencoderConfig(channel_multipliers=(1, 2), attention_resolutions=(8,), quantizer=codebook, **SHAPE)
    )


def picked(tensor: Tensor) -> list[float]:
    flat = tensor.detach().flatten()
    return flat[:: max(1, len(flat) // 6)][:6].tolist()


def digits(codes: Tensor) -> str:
    return "".join(f"{code:x}" for code in codes.flatten().tolist())


@pytest.mark.parametrize("form", ["legacy", "paper"])
def test_forward_losses_lambda_and_gradients_are_those_of_taming(form: str) -> None:
    golden, model, images = GOLDEN[form], vq(form == "legacy"), formula((2, 3, 16, 16), 100)
    result = model(images)
    assert picked(result.latent) == pytest.approx(golden["latent"], abs=1e-5)
    assert digits(result.quantized.codes) == golden["codes"]
    assert picked(result.images) == pytest.approx(golden["picture"], abs=2e-5)
    of_codes = torch.stack([*result.quantized.losses.values()]).sum()
    assert of_codes.item() == pytest.approx(golden["quantizer_loss"], rel=1e-5)

    critic = nn.Conv2d(3, 1, 4, stride=2)
    critic.load_state_dict(formula_tensors(critic.state_dict()))
    reconstruction, game = F.l1_loss(result.images, images), generator_loss(critic(result.images))
    slopes = [torch.autograd.grad(term, result.images, retain_graph=True)[0] for term in (reconstruction, game)]
    weight = adaptive_weight(result.last_hidden, model.decoder.conv_out, *slopes, reduce=lambda x: x)
    assert weight.item() == pytest.approx(golden["adaptive_weight"], rel=1e-4)
    total = reconstruction + 0.75 * weight * game + of_codes
    assert total.item() == pytest.approx(golden["total_loss"], rel=1e-5)
    total.backward()
    gradients = dict(model.named_parameters())
    for name, norm in golden["gradient_norms"].items():
        assert gradients[name].grad.norm().item() == pytest.approx(norm, rel=1e-3), name

    real, fake = critic(images), critic(result.images)
    assert discriminator_loss(real, fake).item() == pytest.approx(golden["hinge"], rel=1e-5)
    assert discriminator_loss(real, fake, "non_saturating").item() == pytest.approx(golden["softplus"], rel=1e-5)


def test_odd_sides_are_padded_as_theirs() -> None:
    golden = GOLDEN["odd"]
    with torch.no_grad():
        result = vq(legacy=False)(formula((1, 3, 17, 19), 101))
    assert list(result.images.shape) == golden["shape"]
    assert digits(result.quantized.codes) == golden["codes"]
    assert picked(result.latent) == pytest.approx(golden["latent"], abs=1e-5)
    assert picked(result.images) == pytest.approx(golden["picture"], abs=2e-5)


def test_the_kl_autoencoder_is_that_of_latent_diffusion() -> None:
    golden = GOLDEN["kl"]
    options = {"channel_multipliers": (1, 1, 2), "mid_attention": False, "quantizer": KlConfig(kl_weight=1.0)}
    model, images = filled(AutoencoderConfig(**(SHAPE | options))), formula((2, 3, 16, 16), 100)
    with torch.no_grad():
        result = model(images)
    assert picked(result.latent) == pytest.approx(golden["mean"], abs=1e-5)
    assert picked(result.images) == pytest.approx(golden["picture"], abs=2e-5)
    per_value = golden["kl_sum_per_picture"] / images[0].numel()  # ours is beside the mean error of a pixel value
    assert result.quantized.losses["kl_loss"].item() == pytest.approx(per_value, rel=1e-5)
