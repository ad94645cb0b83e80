"""Our UNet beside diffusers' with the same random weights: outputs and gradients; names there and back."""

import pytest
import torch

from pipeline.models.convert_unet import diffusers_config, renamed, restored
from pipeline.models.unet import UNet, UNetConfig
from pipeline.torchvision_shim import declare_missing_operators

BASE = UNetConfig(
    channels=32,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    attention_factors=(1, 2),
    num_heads=2,
    context_dim=32,
    num_groups=8,
)
CONFIGS = {
    "sd1": BASE,
    "sd2": BASE.model_copy(update={"num_heads": None, "head_dim": 16, "linear_projections": True}),
    "deep": BASE.model_copy(
        update={
            "channel_multipliers": (1, 2, 2),
            "num_res_blocks": 2,
            "attention_factors": (2,),
            "transformer_depth": 2,
        }
    ),
}


def randomised(config: UNetConfig) -> UNet:
    """Without the zeros of the start, which would hide most layers."""
    torch.manual_seed(0)
    unet = UNet(config)
    for parameter in unet.parameters():
        if not parameter.detach().any():
            torch.nn.init.normal_(parameter, std=0.05)
    return unet


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, states = torch.randn(2, 4, 16, 16, generator=generator), torch.randn(2, 7, 32, generator=generator)
    return x, torch.tensor([3, 40]), states  # diffusers' float32 angles of the embedding err by 6e-8 t


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_outputs_and_gradients_are_those_of_diffusers(config: UNetConfig) -> None:
    declare_missing_operators()
    from diffusers import UNet2DConditionModel

    ours = randomised(config)
    arguments = diffusers_config(config, in_channels=4, sample_size=16)
    theirs = UNet2DConditionModel(**{name: value for name, value in arguments.items() if not name.startswith("_")})
    theirs.load_state_dict(renamed(ours.state_dict(), config, "diffusers"), strict=True)
    x, t, states = inputs()
    target = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    ours_out, theirs_out = ours(x, t, states), theirs(x, t, states).sample
    scale = theirs_out.abs().max().item()
    torch.testing.assert_close(ours_out, theirs_out, rtol=0, atol=1e-5 * scale)
    for output in (ours_out, theirs_out):
        (output - target).square().mean().backward()
    theirs_gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    ours_gradients = renamed({name: p.grad for name, p in ours.named_parameters()}, config, "diffusers")  # type: ignore
    assert ours_gradients.keys() == theirs_gradients.keys()
    for name, gradient in theirs_gradients.items():
        error = (ours_gradients[name] - gradient).norm() / gradient.norm()
        assert error < 1e-4, (name, float(error))


@pytest.mark.parametrize("layout", ["diffusers", "compvis"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_names_come_back(config: UNetConfig, layout: str) -> None:
    own = randomised(config).state_dict()
    there = renamed(own, config, layout)  # type: ignore[arg-type]
    assert len(there) == len(own)
    back = restored(there, list(own), config, layout)  # type: ignore[arg-type]
    assert all(torch.equal(back[name], tensor) for name, tensor in own.items())


def test_names_of_stable_diffusion_1() -> None:
    """Some of the 686 names and shapes of the published v1 checkpoint, below `model.diffusion_model`."""
    config = UNetConfig(num_heads=8)
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in renamed(UNet(config).state_dict(), config, "compvis").items()}
    assert len(shapes) == 686
    known = {
        "time_embed.2.weight": (1280, 1280),
        "input_blocks.0.0.weight": (320, 4, 3, 3),
        "input_blocks.3.0.op.weight": (320, 320, 3, 3),
        "input_blocks.4.0.skip_connection.weight": (640, 320, 1, 1),
        "input_blocks.8.1.transformer_blocks.0.attn2.to_k.weight": (1280, 768),
        "input_blocks.11.0.emb_layers.1.weight": (1280, 1280),
        "middle_block.1.proj_in.weight": (1280, 1280, 1, 1),
        "output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
        "output_blocks.5.2.conv.weight": (1280, 1280, 3, 3),
        "output_blocks.8.2.conv.bias": (640,),
        "output_blocks.11.1.transformer_blocks.0.ff.net.0.proj.weight": (2560, 320),
        "output_blocks.11.1.transformer_blocks.0.ff.net.2.weight": (320, 1280),
        "out.2.weight": (4, 320, 3, 3),
    }
    assert {name: shapes.get(name) for name in known} == known
