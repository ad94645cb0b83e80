"""Our UNet beside diffusers' of the same weights: a training step of text to image, and sampling of 50 steps.

Both sides start from the same weights and get the same latents, states, noise and timesteps; theirs is the loop of
diffusers' text-to-image example (UNet2DConditionModel, DDPMScheduler.add_noise, mse_loss, AdamW, clipping). bf16 by
autocast on both sides. What the loss curves differ by is printed with the figures.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.race import Result, Side, Stopwatch, race
from pipeline.diffusion.guidance import guided_denoiser
from pipeline.diffusion.objective import ObjectiveConfig, build_objective
from pipeline.diffusion.sampling import ddim
from pipeline.diffusion.schedule import spaced_timesteps
from pipeline.models.convert_unet import diffusers_config, renamed
from pipeline.models.unet import UNet, UNetConfig
from pipeline.optim import OptimConfig, build_optimizer
from pipeline.torchvision_shim import declare_missing_operators

SHAPE = UNetConfig(channels=64, channel_multipliers=(1, 2), attention_factors=(1, 2), num_heads=4, context_dim=64)
BATCH, SIDE, TOKENS, STEPS = 16, 16, 16, 4
SAMPLING_STEPS, NUM_PICTURES, GUIDANCE = 50, 4, 5.0
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def races() -> list[Result]:
    """Training steps, then pictures."""
    return [_training(), _sampling()]


def pair() -> tuple[UNet, torch.nn.Module]:
    """Ours, without the zeros of the start, and theirs with the same weights."""
    declare_missing_operators()
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    ours = UNet(SHAPE)
    for parameter in ours.parameters():
        if not parameter.detach().any():
            torch.nn.init.normal_(parameter, std=0.02)
    arguments = diffusers_config(SHAPE, SHAPE.latent_channels, SIDE)
    theirs = UNet2DConditionModel(**{name: value for name, value in arguments.items() if not name.startswith("_")})
    theirs.load_state_dict(renamed(ours.state_dict(), SHAPE, "diffusers"))
    return ours, theirs


def _batch(number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(latents, noise, timesteps, text states) of a step."""
    draws = torch.Generator().manual_seed(number)
    clean, noise = torch.randn(2, BATCH, SHAPE.latent_channels, SIDE, SIDE, generator=draws)
    t = torch.randint(0, 1000, (BATCH,), generator=draws)
    return clean, noise, t, torch.randn(BATCH, TOKENS, SHAPE.context_dim, generator=draws)


def _training() -> Result:
    from diffusers import DDPMScheduler

    ours, theirs = pair()
    ours.to(memory_format=torch.channels_last)
    objective, scheduler = build_objective(ObjectiveConfig()), DDPMScheduler(**BETAS)
    own_adam = build_optimizer(OptimConfig(learning_rate=1e-4, weight_decay=0.01), ours)
    their_adam = torch.optim.AdamW(theirs.parameters(), lr=1e-4, weight_decay=0.01)
    losses: dict[str, list[float]] = {"ours": [], "theirs": []}

    def run_ours(watch: Stopwatch) -> int:
        for _ in range(STEPS):
            clean, noise, t, states = _batch(len(losses["ours"]))
            with watch.running():
                with torch.autocast("cpu", torch.bfloat16):
                    output = ours(objective.schedule.add_noise(clean, noise, t), t, states)
                loss = objective.loss(output, clean, noise, t).mean()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(ours.parameters(), 1.0)
                own_adam.step()
                own_adam.zero_grad()
            losses["ours"].append(loss.item())
        return STEPS

    def run_theirs(watch: Stopwatch) -> int:
        for _ in range(STEPS):
            clean, noise, t, states = _batch(len(losses["theirs"]))
            with watch.running():
                with torch.autocast("cpu", torch.bfloat16):
                    output = theirs(scheduler.add_noise(clean, noise, t), t, states).sample
                loss = F.mse_loss(output.float(), noise.float())
                loss.backward()
                torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
                their_adam.step()
                their_adam.zero_grad()
            losses["theirs"].append(loss.item())
        return STEPS

    title = f"Training step of a UNet of {sum(p.numel() for p in ours.parameters()):,} weights, batch {BATCH}, bf16"
    result = race(title, "steps/s", [Side("ours", run_ours), Side("diffusers", run_theirs)])
    apart = max(abs(a / b - 1) for a, b in zip(losses["ours"], losses["theirs"], strict=True))
    return Result(f"{title}; loss curves at most {apart:.2%} apart", result.unit, result.medians)


def _sampling() -> Result:
    from diffusers import DDIMScheduler

    ours, theirs = (network.eval() for network in pair())
    ours.to(memory_format=torch.channels_last)
    objective = build_objective(ObjectiveConfig())
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(NUM_PICTURES, SHAPE.latent_channels, SIDE, SIDE, generator=draws)
    states, null = torch.randn(2, NUM_PICTURES, TOKENS, SHAPE.context_dim, generator=draws)

    @torch.no_grad()
    def run_ours(watch: Stopwatch) -> int:
        with watch.running(), torch.autocast("cpu", torch.bfloat16):
            denoiser = guided_denoiser(ours, objective, states, null, GUIDANCE)
            timesteps = spaced_timesteps(SAMPLING_STEPS, "trailing")
            ddim(denoiser, x, objective.schedule, timesteps, lambda index: x)
        return NUM_PICTURES

    @torch.no_grad()
    def run_theirs(watch: Stopwatch) -> int:
        scheduler = DDIMScheduler(**BETAS, timestep_spacing="trailing", clip_sample=False)
        scheduler.set_timesteps(SAMPLING_STEPS)
        with watch.running(), torch.autocast("cpu", torch.bfloat16):
            latents, both = x, torch.cat([null, states])
            for t in scheduler.timesteps:
                nothing, text = theirs(torch.cat([latents, latents]), t, both).sample.chunk(2)
                latents = scheduler.step(nothing + GUIDANCE * (text - nothing), t, latents).prev_sample
        return NUM_PICTURES

    title = f"Sampling of {NUM_PICTURES} latents in {SAMPLING_STEPS} DDIM steps under guidance, bf16"
    return race(title, "pictures/s", [Side("ours", run_ours), Side("diffusers", run_theirs)])
