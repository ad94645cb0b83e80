"""Our UNet and DDIM beside CompVis' own code, by numbers that their code gave.

Made with latent-diffusion a506df5: `UNetModel(image_size=8, in_channels=4, model_channels=32, out_channels=4,
num_res_blocks=1, attention_resolutions=[1, 2], channel_mult=[1, 2], use_spatial_transformer=True, transformer_depth=1,
context_dim=12, legacy=False)` with num_heads=2 or num_head_channels=16, weights by `formula_tensors` of its state dict,
the inputs below, torch 2.13.0 on x86-64. Gradients are those of the mean square of the output. DDIM is their
DDIMSampler with 20 steps, eta 0 and guidance 3 on the schedule 0.0015 to 0.0195; compared is its last estimate of the
clean latent, since their sampler ends at the noise of the first timestep and ours at the estimate.
"""

import pytest
import torch

from pipeline.diffusion.guidance import guided_denoiser
from pipeline.diffusion.objective import ObjectiveConfig, build_objective
from pipeline.diffusion.sampling import SAMPLERS, unchanged
from pipeline.diffusion.schedule import ScheduleConfig, spaced_timesteps
from pipeline.models.convert_unet import renamed, restored
from pipeline.models.unet import UNet, UNetConfig
from tests.formula import formula, formula_tensors

SHAPE = UNetConfig(
    channels=32,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    attention_factors=(1, 2),
    num_heads=2,
    context_dim=12,
    num_groups=32,
)
SHAPES = {"heads": SHAPE, "width of a head": SHAPE.model_copy(update={"num_heads": None, "head_dim": 16})}
PLACES = [0, 77, 200, 300, 511]
OUTPUTS = {
    "heads": ([-0.564513, -1.090039, 0.538001, -4.539582, 0.519093], 0.630339, 4.883584),
    "width of a head": ([-0.039709, -0.69235, 0.794957, -2.610212, 0.481334], 0.623195, 4.660249),
}
"""Some of the output, its mean magnitude, and the norm of all gradients."""
DDIM = [14.26173, 54.44156, -16.57434, -24.3575, -62.93976]
CONTEXT = formula((2, 5, 12), 1002)


def filled(config: UNetConfig) -> UNet:
    """Their formula fills by the alphabet of their names."""
    unet = UNet(config).eval()
    theirs = formula_tensors(renamed(unet.state_dict(), config, "compvis"))
    unet.load_state_dict(restored(theirs, list(unet.state_dict()), config, "compvis"))
    return unet


@pytest.mark.parametrize("name", SHAPES)
def test_outputs_and_gradients_are_theirs(name: str) -> None:
    some, magnitude, gradient = OUTPUTS[name]
    unet = filled(SHAPES[name])
    output = unet(formula((2, 4, 8, 8), 1001), torch.tensor([3, 900]), CONTEXT)
    assert output.flatten()[PLACES].tolist() == pytest.approx(some, abs=1e-5)
    assert output.abs().mean().item() == pytest.approx(magnitude, abs=1e-5)
    output.square().mean().backward()
    norms = torch.stack([parameter.grad.norm() for parameter in unet.parameters() if parameter.grad is not None])
    assert len(norms) == 286 and norms.norm().item() == pytest.approx(gradient, rel=1e-5)


@torch.no_grad()
def test_ddim_estimates_what_theirs_does() -> None:
    objective = build_objective(ObjectiveConfig(schedule=ScheduleConfig(beta_start=0.0015, beta_end=0.0195)))
    null = formula((1, 5, 12), 1003).expand(2, -1, -1)
    denoiser = guided_denoiser(filled(SHAPES["width of a head"]), objective, CONTEXT, null, 3.0)
    timesteps = spaced_timesteps(20, "leading")
    assert (timesteps[-1], timesteps[-2], timesteps[0]) == (1, 51, 951)
    start = formula((2, 4, 8, 8), 1004)
    drawn = SAMPLERS["ddim"](denoiser, start, objective.schedule, timesteps, lambda i: start, unchanged)
    assert drawn.flatten()[PLACES].tolist() == pytest.approx(DDIM, rel=1e-4)
    assert drawn.abs().mean().item() == pytest.approx(45.50642, rel=1e-4)
