"""The plan's speed against mosaicml/diffusion's published table, and its memory against what a real step allocates."""

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker

from pipeline.models.unet import UNet, UNetConfig
from pipeline.plan.estimate import GPUS, cheapest_stage, memory_per_gpu, speed_of
from pipeline.plan.measure import Part, flop_counter, measure, shapes_only

SD2 = UNetConfig(
    latent_channels=4,
    channels=320,
    channel_multipliers=(1, 2, 4, 4),
    num_res_blocks=2,
    attention_factors=(1, 2, 4),
    head_dim=64,
    context_dim=1024,
    linear_projections=True,
)
SD1 = UNetConfig(num_heads=8)
SMALL = UNetConfig(
    latent_channels=4, channels=64, channel_multipliers=(1, 2), num_res_blocks=1, head_dim=32, context_dim=64
)
PUBLISHED = {
    256: {8: 1100, 16: 2180, 32: 4080, 64: 8530, 128: 11600},
    512: {8: 290, 16: 585, 32: 1195, 64: 2340, 128: 4590},
}
"""Image size -> GPUs -> images/s: mosaicml/diffusion's README, A100, batch 2048, latents and texts precomputed."""


def unet_part(config: UNetConfig, side: int, length: int, bf16: bool) -> Part:
    def run(n: int) -> torch.Tensor:
        latents, states = torch.empty(n, 4, side, side), torch.empty(n, length, config.context_dim)
        output: torch.Tensor = unet(latents, torch.zeros(n, dtype=torch.long), states)
        return output

    with shapes_only():
        unet = UNet(config)
        return measure("unet", unet, run, bf16=bf16, averaged=True)


@pytest.fixture(scope="module")
def sd2() -> dict[int, Part]:
    return {size: unet_part(SD2, size // 8, 77, bf16=True) for size in PUBLISHED}


# 10^9 multiplications of a picture's forward pass with 77 text tokens; training takes three times that
@pytest.mark.parametrize(("config", "sides"), [(SD2, {32: 90.55, 64: 402.13}), (SD1, {64: 401.64})], ids=["SD2", "SD1"])
def test_multiplications_of_stable_diffusion(config: UNetConfig, sides: dict[int, float]) -> None:
    with shapes_only(), torch.no_grad():
        unet = UNet(config)
        for side, count in sides.items():
            with flop_counter() as counter:
                unet(torch.empty(1, 4, side, side), torch.empty(1), torch.empty(1, 77, config.context_dim))
            assert counter.get_total_flops() / 2e9 == pytest.approx(count, abs=0.005)


def test_a_training_step_is_three_forwards(sd2: dict[int, Part]) -> None:
    """But for the gradients of latents and text states, which nobody takes."""
    for size, teraflops in ((256, 0.543), (512, 2.413)):
        assert 0.99 * teraflops < sd2[size].flops / 1e12 < teraflops


def test_every_published_speed_within_a_fifth(sd2: dict[int, Part]) -> None:
    for size, row in PUBLISHED.items():
        for num_gpus, published in row.items():
            speed = speed_of([sd2[size]], GPUS["a100"], True, 0, num_gpus, 8, 2048, overlaps=True)
            ratio = speed.typical_images_per_second / published
            print(f"{size} pixels, {num_gpus} A100: {speed.typical_images_per_second:.0f} images/s, {ratio:.2f} of it")
            assert 0.8 < ratio < 1.2, (size, num_gpus, ratio)
            assert speed.images_per_second[0] < published < speed.images_per_second[1]


def test_a_thousand_gpus_on_paper(sd2: dict[int, Part]) -> None:
    memory = {stage: memory_per_gpu([sd2[512]], stage, 1024, 2, 20_000_000) for stage in range(4)}
    assert memory[3].optimizer == 8 * -(-sd2[512].num_trained // 1024)
    small, large = (
        speed_of([sd2[512]], GPUS["h100"], True, 2, n, 8, 2 * n).typical_images_per_second for n in (128, 1024)
    )
    assert 7.5 < large / small <= 8.0, "the same work on each: only the ring grows longer"
    assert cheapest_stage(memory, int(40 * 2**30)) == 0
    assert cheapest_stage(memory, memory[0].total - 1) == 1
    assert cheapest_stage(memory, 2**20) is None


def test_memory_is_what_a_step_allocates() -> None:
    """AdamW in fp32 on the CPU: torch's own tracker of live storages, at the end of the second forward pass."""
    torch.manual_seed(0)
    unet, num_images = UNet(SMALL), 4
    adam = torch.optim.AdamW(unet.parameters(), fused=True)
    tracker = MemTracker()
    tracker.track_external(unet, adam)
    with tracker:
        for _ in range(2):
            tracker.reset_mod_stats()
            x = torch.randn(num_images, 4, 16, 16)
            loss = unet(x, torch.zeros(num_images, dtype=torch.long), torch.randn(num_images, 8, 64)).square().mean()
            snapshot = tracker.get_tracker_snapshot("current")
            loss.backward()
            adam.step()
            adam.zero_grad(set_to_none=False)
    (by_kind,) = snapshot.values()
    found = {getattr(kind, "value", kind): num_bytes for kind, num_bytes in by_kind.items()}
    print(found)
    part = unet_part(SMALL, 16, 8, bf16=False)
    planned = memory_per_gpu([part], 0, 1, num_images, 0)
    print(planned)
    assert planned.weights == found["Parameter"]
    assert planned.gradients == found["Gradient"]
    assert planned.optimizer == pytest.approx(found["Optstate"], rel=1e-3)  # and its step counters
    assert planned.activations == pytest.approx(found["Activation"], rel=0.01)
