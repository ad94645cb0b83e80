"""The UNet: published parameter counts, zero start, timestep embedding, precision, checkpointing."""

from functools import partial

import pytest
import torch
from pydantic import ValidationError

from pipeline.models.unet import Layer, UNet, UNetConfig
from pipeline.models.unet_blocks import GroupNorm, position_code, timestep_embedding

SD1 = UNetConfig(num_heads=8)
SD2 = UNetConfig(head_dim=64, context_dim=1024, linear_projections=True)
SMALL = UNetConfig(
    channels=16,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    attention_factors=(1, 2),
    num_heads=2,
    context_dim=12,
    num_groups=8,
)


def randomised(config: UNetConfig) -> UNet:
    """A UNet without zeros, so that every layer matters."""
    torch.manual_seed(0)
    unet = UNet(config)
    for parameter in unet.parameters():
        if not parameter.detach().any():
            torch.nn.init.normal_(parameter, std=0.05)
    return unet


def inputs(size: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, size, size, generator=generator)
    return x, torch.tensor([3, 900]), torch.randn(2, 5, 12, generator=generator)


@pytest.mark.parametrize("config, count", [(SD1, 859_520_964), (SD2, 865_910_724)])
def test_parameter_counts_of_stable_diffusion(config: UNetConfig, count: int) -> None:
    with torch.device("meta"):
        unet = UNet(config)
    assert sum(parameter.numel() for parameter in unet.parameters()) == count


def test_heads_of_both_conventions() -> None:
    assert [SD1.heads(width) for width in (320, 640, 1280)] == [(8, 40), (8, 80), (8, 160)]
    assert [SD2.heads(width) for width in (320, 640, 1280)] == [(5, 64), (10, 64), (20, 64)]
    for wrong in ({}, {"num_heads": 8, "head_dim": 64}, {"num_heads": 7}):
        with pytest.raises(ValidationError):
            UNetConfig(**wrong)


def test_a_new_model_says_exactly_zero_and_learns_everywhere() -> None:
    unet = UNet(SMALL)
    x, t, context = inputs()
    assert not unet(x, t, context).any()
    zero_branches = [
        module for name, module in unet.named_modules() if name.endswith(("conv2", "project_out", "conv_out"))
    ]
    assert len(zero_branches) == 8 + 7 + 1
    assert not any(parameter.any() for module in zero_branches for parameter in module.parameters())


def test_every_parameter_gets_a_gradient() -> None:
    unet = randomised(SMALL)
    unet(*inputs()).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in unet.parameters())


# float64 values of arXiv 2006.11239's embedding at frequency indices 0, 1, 159 of 160
@pytest.mark.parametrize(
    "t, cosines, sines",
    [
        (500, [-0.88384927, 0.70275046, 0.99859780], [-0.46777181, 0.71143642, 0.05293793]),
        (1, [0.54030231, 0.58650378, 0.99999999], [0.84147098, 0.80994649, 0.00010593]),
    ],
)
def test_timestep_embedding(t: int, cosines: list[float], sines: list[float]) -> None:
    embedding = timestep_embedding(torch.tensor([t]), 320)[0]
    assert embedding[[0, 1, 159]].tolist() == pytest.approx(cosines, abs=1e-7)
    assert embedding[[160, 161, 319]].tolist() == pytest.approx(sines, abs=1e-7)


def test_odd_embedding_ends_in_zero() -> None:
    assert timestep_embedding(torch.tensor([7]), 5).shape == (1, 5)
    assert timestep_embedding(torch.tensor([7]), 5)[0, -1] == 0.0


@pytest.mark.parametrize("linear_projections", [False, True])
def test_projections_compute_the_same_function(linear_projections: bool) -> None:
    """SD1's 1x1 convolutions and SD2's linear layers differ in weight shapes only."""
    conv, other = randomised(SMALL), UNet(SMALL.model_copy(update={"linear_projections": linear_projections}))
    shapes = {name: parameter.shape for name, parameter in other.named_parameters()}
    other.load_state_dict({name: value.reshape(shapes[name]) for name, value in conv.state_dict().items()})
    torch.testing.assert_close(conv(*inputs()), other(*inputs()), rtol=1e-5, atol=1e-5)


def test_gradient_checkpointing_changes_nothing() -> None:
    plain, recomputing = randomised(SMALL), randomised(SMALL.model_copy(update={"gradient_checkpointing": True}))
    gradients = []
    for unet in (plain, recomputing):
        unet(*inputs()).square().mean().backward()
        gradients.append([parameter.grad for parameter in unet.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_every_input_matters_and_samples_do_not_mix() -> None:
    unet = randomised(SMALL)
    x, t, context = inputs()
    out = unet(x, t, context)
    assert not torch.allclose(unet(x, t + 50, context), out)
    other = unet(x, t, torch.cat([context[:1], context[1:].flip(1) * 2]))
    torch.testing.assert_close(other[0], out[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(other[1], out[1])


def test_masked_padding_has_no_influence_and_is_seen_without_the_mask() -> None:
    plain, masked = randomised(SMALL), UNet(SMALL, mask_padding=True)
    masked.load_state_dict(plain.state_dict())
    x, t, context = inputs()
    longer = torch.nn.functional.pad(context, (0, 0, 0, 3))  # [2, 8, 12]
    torch.testing.assert_close(masked(x, t, longer), plain(x, t, context))
    assert (plain(x, t, longer) - plain(x, t, context)).abs().max() > 1e-3
    longer.requires_grad_()
    masked(x, t, longer).square().mean().backward()
    assert not longer.grad[:, 5:].any() and longer.grad[:, :5].any(dim=2).all()


def test_group_norm_is_float32_inside() -> None:
    norm = GroupNorm(2, 8)
    x = (100 + torch.randn(2, 8, 4, 4)).bfloat16()
    expected = torch.nn.functional.group_norm(x.float(), 2, norm.weight, norm.bias, norm.eps)
    with torch.autocast("cpu", torch.bfloat16):
        out = norm(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected.bfloat16(), rtol=0, atol=0)


def test_runs_in_bf16_and_near_float32() -> None:
    unet = randomised(SMALL)
    exact = unet(*inputs())
    with torch.autocast("cpu", torch.bfloat16):
        close = unet(*inputs())
    assert torch.nn.functional.mse_loss(close.float(), exact) < 1e-3 * exact.square().mean()


def test_other_sizes_than_the_usual_one() -> None:
    assert randomised(SMALL)(*inputs(size=12)).shape == (2, 4, 12, 12)


def test_position_code_tells_every_place_apart_and_costs_no_parameters() -> None:
    code = position_code(6, 5, 14, torch.device("cpu"))
    assert code.shape == (30, 14)
    assert (torch.cdist(code, code) + 10 * torch.eye(30)).min() > 0.05
    torch.testing.assert_close(code.view(6, 5, 14)[:, :1, :7].expand(-1, 5, -1), code.view(6, 5, 14)[:, :, :7])
    with torch.device("meta"):
        unet = UNet(SD2.model_copy(update={"position_code": True}))
    assert sum(parameter.numel() for parameter in unet.parameters()) == 865_910_724


def test_position_code_breaks_the_symmetry_of_places() -> None:
    """Without it a transformer gives equal features at all places of an even map; with it, not."""
    for enabled in (False, True):
        unet = randomised(SMALL.model_copy(update={"position_code": enabled}))
        out = unet.down[0].layers[0].attention(torch.ones(1, 16, 4, 4), torch.ones(1, 5, 12))
        assert torch.allclose(out, out[:, :, :1, :1].expand_as(out), atol=1e-5) == (not enabled)


def compiled(backend: str, monkeypatch: pytest.MonkeyPatch, **changes: object) -> UNet:
    """A randomised UNet whose blocks are compiled by that backend of torch's."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    return randomised(SMALL.model_copy(update={"compile_blocks": True, **changes}))


def outputs_and_gradients(unet: UNet) -> list[torch.Tensor]:
    output = unet(*inputs())
    output.square().mean().backward()
    return [output.detach(), *(parameter.grad for parameter in unet.parameters() if parameter.grad is not None)]


@pytest.mark.parametrize(("recompute", "widths", "num_blocks"), [(False, (1, 2, 3), 11), (True, (1,), 5)])
def test_every_block_is_compiled_and_none_is_renamed(
    monkeypatch: pytest.MonkeyPatch, recompute: bool, widths: tuple[int, ...], num_blocks: int
) -> None:
    shape = {"channel_multipliers": widths, "gradient_checkpointing": recompute}
    unet, plain = compiled("eager", monkeypatch, **shape), randomised(SMALL.model_copy(update=shape))
    assert list(unet.state_dict()) == list(plain.state_dict())
    for found, wanted in zip(outputs_and_gradients(unet), outputs_and_gradients(plain), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert sum(isinstance(module, Layer) for module in unet.modules()) == num_blocks
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == num_blocks  # dynamo's own limit is eight
    with torch.no_grad():
        unet(*inputs(16))  # sampling compiles nothing
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == num_blocks


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_kernels_of_inductor_give_the_same() -> None:
    torch._dynamo.reset()
    layers = []
    for compile_blocks in (True, False):
        torch.manual_seed(0)
        layers.append(Layer(SMALL.model_copy(update={"compile_blocks": compile_blocks}), 16, 16, attends=True))
        for parameter in layers[-1].parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    x, _, context = inputs()
    seen = torch.cat([x, x, x, x], dim=1), torch.randn(2, 64, generator=torch.Generator().manual_seed(2)), context
    fused, plain = (layer(*seen) for layer in layers)
    torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-4)
    for output in (fused, plain):
        output.square().mean().backward()
    for a, b in zip(*(layer.parameters() for layer in layers), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4)
