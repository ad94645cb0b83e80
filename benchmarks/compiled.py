"""What `compile_blocks` gains: the same training step of a small UNet with its blocks plain and through inductor.

    python -m benchmarks.compiled

Processor time of one process, both sides in turns, after the first steps, which compile. bf16 by autocast.
"""

import time
from collections.abc import Callable
from statistics import median

import torch

from pipeline.models.unet import UNet, UNetConfig
from pipeline.optim import OptimConfig, build_optimizer

SHAPE = UNetConfig(
    channels=64, channel_multipliers=(1, 2), num_res_blocks=1, attention_factors=(1, 2), num_heads=4, context_dim=64
)
BATCH, SIDE, TOKENS, ROUNDS = 16, 16, 16, 11


def main() -> None:
    """Compile, then measure."""
    sides = {"plain": _step_of(SHAPE), "compiled": _step_of(SHAPE.model_copy(update={"compile_blocks": True}))}
    for name, step in sides.items():
        began = time.perf_counter()
        for _ in range(2):
            step()
        print(f"{name}: first steps {time.perf_counter() - began:.1f} s", flush=True)
    spent: dict[str, list[float]] = {name: [] for name in sides}
    losses: dict[str, float] = {}
    for _ in range(ROUNDS):
        for name, step in sides.items():
            began = time.process_time()
            losses[name] = step()
            spent[name].append(time.process_time() - began)
    seconds = {name: median(values) for name, values in spent.items()}
    print(*(f"{name} {value:.3f} CPU s" for name, value in seconds.items()), sep=", ", end="; ")
    apart = abs(losses["compiled"] / losses["plain"] - 1)
    print(f"{seconds['plain'] / seconds['compiled']:.2f} times, losses {apart:.1e} apart, torch {torch.__version__}")


def _step_of(shape: UNetConfig) -> Callable[[], float]:
    """One training step, with the same weights and inputs on both sides; its loss."""
    torch.manual_seed(0)
    unet = UNet(shape).to(memory_format=torch.channels_last)
    adam = build_optimizer(OptimConfig(), unet)
    x, noise = torch.randn(2, BATCH, SHAPE.latent_channels, SIDE, SIDE)
    t, states = torch.randint(0, 1000, (BATCH,)), torch.randn(BATCH, TOKENS, SHAPE.context_dim)

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16):
            output = unet(x, t, states)
        loss = (output.float() - noise).square().mean()
        loss.backward()
        adam.step()
        adam.zero_grad()
        return loss.item()

    return step


if __name__ == "__main__":
    main()
