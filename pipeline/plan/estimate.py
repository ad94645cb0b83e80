"""From measured networks to gigabytes, images per second, hours and money. Plain arithmetic; called by `tessera plan`.

Figures of accelerators are those of the makers' data sheets: dense bf16 and plain fp32 peaks of the SXM form where
there is one. What cannot be known before a run is a range and says so; nothing here replaces a measured step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.plan.measure import Part

MFU_RANGE = (0.15, 0.40)
"""Share of the peak that such networks reach: small convolutions near the first, large attention near the second."""
TYPICAL_MFU = 0.25
"""Between what mosaicml/diffusion's published runs of SD2's UNet reach on A100: 24 % at 256 pixels, 28 % at 512. Their
ten figures from 8 to 128 GPUs and of both sizes follow from it within a fifth (tests/plan/test_published.py)."""
BACKWARD_SHARE = 2 / 3
"""Of the arithmetic: beside it, gradients can already travel."""
USABLE = 0.9
"""Share of the memory to plan with: the allocator, the kernels' workspaces and NCCL take the rest."""
NETWORK_GB_PER_SECOND = 50.0
"""Assumed for each GPU between machines: one 400 Gbit/s port."""
STAGE_3_LIVE_ELEMENTS = 1_000_000_000
"""ZeRO 3 keeps gathered weights up to this many elements (DeepSpeed's stage3_max_live_parameters)."""


@dataclass(frozen=True)
class Gpu:
    """One accelerator."""

    memory_gib: float
    """What a program can allocate."""
    bf16_tflops: float
    """Dense peak with bf16 inputs."""
    fp32_tflops: float
    """Peak without tensor cores."""
    link_gb_per_second: float
    """To its neighbours in the machine, one direction."""


GPUS = {
    "a100-40": Gpu(39.4, 312, 19.5, 300),
    "a100": Gpu(79.2, 312, 19.5, 300),
    "h100": Gpu(79.1, 989, 67, 450),
    "h200": Gpu(139.8, 989, 67, 450),
    "b200": Gpu(178.0, 2250, 75, 900),
    "l40s": Gpu(44.4, 362, 91.6, 32),
    "rtx4090": Gpu(23.5, 165, 82.6, 32),
}


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU at the end of the forward pass."""

    weights: int
    """fp32 weights, sharded masters, gathered and low-precision copies, frozen networks."""
    gradients: int
    """fp32 gradients and the bucket in which they are reduced."""
    optimizer: int
    """Two fp32 moments."""
    average: int
    """The fp32 average of the weights."""
    activations: int
    """What the backward pass waits for."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.average + self.activations


@dataclass(frozen=True)
class Speed:
    """Seconds of one step and what follows from them, for the two ends of `MFU_RANGE`."""

    compute_seconds: tuple[float, float]
    """Arithmetic, fast end first."""
    exchange_seconds: float
    """Gradients and weights between GPUs, if nothing overlapped."""
    exchange_bytes: int
    """What each GPU sends for it."""
    images_per_second: tuple[float, float]
    """All GPUs together, slow end first."""
    typical_images_per_second: float
    """At `TYPICAL_MFU`."""
    binds: str
    """`compute` or `exchange`: what takes longer at the fast end."""


def memory_per_gpu(
    parts: Sequence[Part], zero_stage: int, num_gpus: int, images_per_gpu: int, bucket_elements: int
) -> Memory:
    """The rooms of `Memory` under ZeRO `zero_stage` (0 is also DDP): all state is fp32, 4 bytes an element."""
    trained = sum(part.num_trained for part in parts)
    averaged = sum(part.num_trained for part in parts if part.averaged)
    shard = -(-trained // num_gpus)
    weights = {
        0: trained,
        1: trained + shard,  # the masters are a copy of the rank's share
        2: trained + shard,
        3: 2 * shard + min(trained, STAGE_3_LIVE_ELEMENTS),
    }[zero_stage]
    gradients = {0: trained, 1: trained + bucket_elements, 2: shard + bucket_elements, 3: shard + bucket_elements}
    state_shards = num_gpus if zero_stage > 0 else 1
    return Memory(
        weights=4 * (weights + sum(part.num_frozen for part in parts)) + sum(part.cast_bytes for part in parts),
        gradients=4 * gradients[zero_stage],
        optimizer=8 * -(-trained // state_shards),
        average=4 * -(-averaged // state_shards),
        activations=images_per_gpu * sum(part.image_bytes for part in parts),
    )


def generation_bytes(parts: Sequence[Part]) -> int:
    """Size of one generation of checkpoints, all ranks together: weights, two moments, and averages where kept."""
    return sum(part.num_trained * (16 if part.averaged else 12) for part in parts)


def speed_of(
    parts: Sequence[Part],
    gpu: Gpu,
    bf16: bool,
    zero_stage: int,
    num_gpus: int,
    gpus_per_node: int,
    batch_size: int,
    overlaps: bool = False,
) -> Speed:
    """How fast a step of `batch_size` images over all GPUs can be.

    Args:
        overlaps: gradients travel beside the rest of the backward pass, as under DDP (the accelerate engine).
    """
    flops = sum(part.flops for part in parts) * batch_size / num_gpus
    peak = (gpu.bf16_tflops if bf16 else gpu.fp32_tflops) * 1e12
    slow, typical, fast = (flops / (peak * share) for share in (MFU_RANGE[0], TYPICAL_MFU, MFU_RANGE[1]))
    num_bytes = _exchange_bytes(parts, zero_stage, num_gpus)
    link = gpu.link_gb_per_second if num_gpus <= gpus_per_node else NETWORK_GB_PER_SECOND
    exchange = num_bytes / (link * 1e9)

    def rate(compute: float) -> float:
        hidden = min(exchange, compute * BACKWARD_SHARE) if overlaps else 0.0
        return batch_size / (compute + exchange - hidden)

    return Speed(
        compute_seconds=(fast, slow),
        exchange_seconds=exchange,
        exchange_bytes=num_bytes,
        images_per_second=(rate(slow), rate(fast)),
        typical_images_per_second=rate(typical),
        binds="exchange" if exchange > fast else "compute",
    )


def cheapest_stage(memory: Mapping[int, Memory], usable_bytes: int) -> int | None:
    """The lowest ZeRO stage that fits: each higher one is as slow or slower. None when none does."""
    return min((stage for stage, rooms in memory.items() if rooms.total <= usable_bytes), default=None)


def _exchange_bytes(parts: Sequence[Part], zero_stage: int, num_gpus: int) -> int:
    """A ring pass moves (N - 1) / N of the fp32 weights: two a step (gradients in, weights out), three on ZeRO 3.

    Rajbhandari et al., "ZeRO: memory optimizations toward training trillion parameter models", 2020, section 7.
    """
    passes = 3 if zero_stage == 3 else 2
    return 4 * sum(part.num_trained for part in parts) * passes * (num_gpus - 1) // num_gpus
