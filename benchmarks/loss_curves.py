"""Loss curves of our training step and of diffusers' on the same latents, noise and timesteps, as one picture.

    python -m benchmarks.loss_curves LATENTS OUT.png

LATENTS are shards of `tessera-data precompute`, such as the runs/demo/latents/train of the demo. The networks are those
of `benchmarks.diffusion`, unconditional here; the lower panel is what the losses differ by.
"""

import math
import sys
from collections.abc import Sequence
from itertools import islice

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from benchmarks.diffusion import BATCH, BETAS, SHAPE, TOKENS, pair
from pipeline.data.dataset import DataConfig
from pipeline.data.loader import Loader
from pipeline.diffusion.objective import ObjectiveConfig, build_objective
from pipeline.optim import OptimConfig, build_optimizer

STEPS, LEARNING_RATE = 200, 3e-4
WIDTH, LOSSES, APART = 700, 300, 120
"""Pixels of the picture and its two panels."""


def main(latents: str, out: str) -> None:
    """Train both, draw both."""
    data = DataConfig(train=latents)
    with Loader(latents, data, 0, batch_size=BATCH) as loader:
        batches = [batch.latents for batch in islice(loader.batches(0), STEPS)]
    clean = torch.stack([batch for batch in batches if batch is not None])  # [STEPS, B, C, h, w]
    clean = (clean - clean.mean()) / clean.std()
    ours, theirs = _curves(clean)
    _draw(ours, theirs, out)
    apart = max(abs(a / b - 1) for a, b in zip(ours, theirs, strict=True))
    print(f"{STEPS} steps, from {ours[0]:.3f} to {sum(ours[-20:]) / 20:.3f}; at most {apart:.2%} apart")


def _curves(latents: Tensor) -> tuple[list[float], list[float]]:
    """The losses of both loops over latents [STEPS, B, C, h, w]."""
    from diffusers import DDPMScheduler

    ours, theirs = pair()
    objective, scheduler = build_objective(ObjectiveConfig()), DDPMScheduler(**BETAS)
    own_adam = build_optimizer(OptimConfig(learning_rate=LEARNING_RATE, weight_decay=0.0), ours)
    their_adam = torch.optim.AdamW(theirs.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    states = torch.zeros(BATCH, TOKENS, SHAPE.context_dim)
    draws, losses = torch.Generator().manual_seed(0), ([], [])  # type: tuple[list[float], list[float]]
    for clean in latents:
        noise = torch.randn(clean.shape, generator=draws)
        t = torch.randint(0, 1000, (BATCH,), generator=draws)
        own = objective.loss(ours(objective.schedule.add_noise(clean, noise, t), t, states), clean, noise, t).mean()
        other = F.mse_loss(theirs(scheduler.add_noise(clean, noise, t), t, states).sample, noise)
        for loss, adam, curve in zip((own, other), (own_adam, their_adam), losses, strict=True):
            loss.backward()
            adam.step()
            adam.zero_grad()
            curve.append(loss.item())
    return losses


def _draw(ours: Sequence[float], theirs: Sequence[float], out: str) -> None:
    """Both losses above, theirs broad under ours, and below how far they are apart on a logarithmic scale."""
    sheet = Image.new("RGB", (WIDTH, LOSSES + APART), "white")
    pen = ImageDraw.Draw(sheet)
    top = max(*ours, *theirs)
    for losses, colour, width in ((theirs, "#f4a261", 6), (ours, "#1d3557", 2)):
        pen.line(_points([loss / top for loss in losses], LOSSES, 0), fill=colour, width=width, joint="curve")
    decades = [math.log10(max(abs(a / b - 1), 1e-8)) / 8 + 1 for a, b in zip(ours, theirs, strict=True)]
    pen.line(_points(decades, APART, LOSSES), fill="#1d3557", width=1)
    for text, place in ((f"loss, 0 to {top:.2f}: diffusers (broad), ours", 4), ("apart, 1e-8 to 1", LOSSES + 4)):
        pen.text((WIDTH - 300, place), text, fill="black")
    sheet.save(out)


def _points(values: Sequence[float], height: int, top: int) -> list[tuple[float, float]]:
    """Pixels of values in 0..1 in a panel that begins `top` pixels below the edge."""
    last = len(values) - 1
    return [(i / last * (WIDTH - 1), top + (height - 8) * (1 - value) + 4) for i, value in enumerate(values)]


if __name__ == "__main__":
    main(*sys.argv[1:])
