"""The plan of a run as one object and as text. Called by `tessera plan`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.plan.estimate import (
    GPUS,
    MFU_RANGE,
    TYPICAL_MFU,
    USABLE,
    Memory,
    Speed,
    cheapest_stage,
    generation_bytes,
    memory_per_gpu,
    speed_of,
)
from pipeline.plan.measure import Part

GIB = 2**30

REMEDIES = {
    "memory": "a higher ZeRO stage, more GPUs, unet.gradient_checkpointing, or a smaller batch",
    "exchange": "a larger batch for each GPU, fewer machines, or ZeRO 2 in place of 3",
    "compute": "more GPUs; and measure a step, since only a run shows the real MFU",
}
"""What to change first, by what binds."""


@dataclass(frozen=True)
class World:
    """The machines, and the run's settings that decide how they are used."""

    gpu: str
    """A key of `estimate.GPUS`."""
    num_gpus: int
    """All of them."""
    gpus_per_node: int
    """Of one machine."""
    batch_size: int
    """Images of a step over all GPUs."""
    total_samples: int
    """Images of the whole run."""
    zero_stage: int
    """0 is also DDP."""
    bf16: bool
    """Products in bf16, else in fp32."""
    bucket_elements: int
    """Elements of a gradient bucket."""
    overlaps: bool = False
    """Gradients travel beside the backward pass."""


@dataclass(frozen=True)
class Plan:
    """All figures of a plan."""

    world: World
    """What it is for."""
    parts: Sequence[Part]
    """The networks of a step."""
    storage: Mapping[str, int]
    """Bytes at rest, by what they hold; what cannot be known yet is absent."""
    memory: Mapping[int, Memory]
    """For each ZeRO stage."""
    usable_bytes: int
    """What a GPU gives."""
    speed: Speed
    """For the configured ZeRO stage."""
    hours: tuple[float, float]
    """The whole run, fast end first."""
    binds: str
    """`memory`, `exchange` or `compute`."""
    cheapest_stage: int | None
    """The lowest ZeRO stage that fits; None when none does."""


def make_plan(parts: Sequence[Part], storage: Mapping[str, int], world: World) -> Plan:
    """The figures for these networks in this world."""
    gpu, per_gpu = GPUS[world.gpu], world.batch_size // world.num_gpus
    memory = {s: memory_per_gpu(parts, s, world.num_gpus, per_gpu, world.bucket_elements) for s in range(4)}
    topology = (world.zero_stage, world.num_gpus, world.gpus_per_node, world.batch_size, world.overlaps)
    speed = speed_of(parts, gpu, world.bf16, *topology)
    slow, fast = (world.total_samples / rate / 3600 for rate in speed.images_per_second)
    usable = int(gpu.memory_gib * GIB * USABLE)
    binds = "memory" if memory[world.zero_stage].total > usable else speed.binds
    return Plan(world, parts, storage, memory, usable, speed, (fast, slow), binds, cheapest_stage(memory, usable))


def describe(plan: Plan, price: float | None) -> str:
    """The plan as text; `price` is money for one GPU-hour."""
    world, speed = plan.world, plan.speed
    (slow, fast), (low, high) = speed.images_per_second, MFU_RANGE
    seconds = f"{speed.compute_seconds[0]:.3g} to {speed.compute_seconds[1]:.3g} s"
    return "\n".join(
        [
            f"{world.num_gpus} x {world.gpu}, {world.batch_size // world.num_gpus} images each,"
            f" ZeRO {world.zero_stage}, {'bf16' if world.bf16 else 'fp32'}",
            "",
            *(_part_row(part) for part in plan.parts),
            "",
            "GiB on a GPU   weights  gradients  optimizer  average  activations    total",
            *(_memory_row(stage, memory, plan.usable_bytes) for stage, memory in plan.memory.items()),
            "",
            *(_row(f"{name} on disk", _size(num_bytes)) for name, num_bytes in plan.storage.items()),
            _row(
                "host memory",
                f"{_size(generation_bytes(plan.parts) // world.num_gpus)} a rank, to save beside the steps",
            ),
            _row("arithmetic", f"{sum(part.flops for part in plan.parts) / 1e12:.3g} TFLOP for each training image"),
            _row("a step", f"{seconds} of arithmetic, {speed.exchange_seconds:.3g} s of exchange if nothing overlaps"),
            _row("exchange", f"{_size(speed.exchange_bytes)} from each GPU in a step"),
            _row("speed", f"{slow:,.4g} to {fast:,.4g} images/s, assuming an MFU of {low:.0%} to {high:.0%}"),
            _row("", f"{speed.typical_images_per_second:,.4g} at the {TYPICAL_MFU:.0%} of published runs on A100"),
            _row("whole run", f"{_range(plan.hours)} hours ({_days(plan.hours)} days), {_cost(plan, price)}"),
            _row("fits", _fits(plan)),
            _row("binds", f"{plan.binds}: {REMEDIES[plan.binds]}"),
        ]
    )


def _row(name: str, text: str) -> str:
    return f"{name:<21} {text}"


def _part_row(part: Part) -> str:
    kinds = ((part.num_trained, "trained"), (part.num_frozen, "frozen"))
    return _row(part.name, ", ".join(f"{count / 1e6:.2f} M parameters {what}" for count, what in kinds if count))


def _memory_row(stage: int, memory: Memory, usable_bytes: int) -> str:
    rooms = (memory.weights, memory.gradients, memory.optimizer, memory.average, memory.activations, memory.total)
    cells = "".join(f"{value / GIB:>{w}.2f}" for value, w in zip(rooms, (8, 11, 11, 9, 13, 9), strict=True))
    return f"ZeRO {stage:<9}{cells}" + ("" if memory.total <= usable_bytes else "  does not fit")


def _size(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f} GiB" if num_bytes >= GIB else f"{num_bytes / 2**20:.1f} MiB"


def _range(values: tuple[float, float]) -> str:
    return f"{values[0]:,.3g} to {values[1]:,.3g}"


def _days(hours: tuple[float, float]) -> str:
    return _range((hours[0] / 24, hours[1] / 24))


def _fits(plan: Plan) -> str:
    if plan.cheapest_stage is None:
        return "no ZeRO stage; more GPUs shard more, gradient checkpointing and a smaller batch need less"
    return f"ZeRO {plan.cheapest_stage} is the lowest stage that does, and so the fastest"


def _cost(plan: Plan, price: float | None) -> str:
    fast, slow = (hours * plan.world.num_gpus for hours in plan.hours)
    text = f"{fast:,.0f} to {slow:,.0f} GPU-hours"
    return text if price is None else f"{text}, {fast * price:,.0f} to {slow * price:,.0f} at {price:g} each"
