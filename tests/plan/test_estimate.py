"""The arithmetic of a plan against closed forms: bytes of ZeRO's stages, of a generation, of an exchange."""

import pytest

from pipeline.plan.estimate import GPUS, generation_bytes, memory_per_gpu, speed_of
from pipeline.plan.measure import Part
from pipeline.plan.summary import World, describe, make_plan

P = 1_000_000
NET = Part("net", P, 0, averaged=True, flops=10**12, image_bytes=1000, cast_bytes=0)
JUDGE = Part("judge", P, 0, averaged=False, flops=0, image_bytes=0, cast_bytes=0)
FROZEN = Part("frozen", 0, P, averaged=False, flops=0, image_bytes=0, cast_bytes=0)


def world(**changes: object) -> World:
    settings = dict(
        gpu="h100",
        num_gpus=8,
        gpus_per_node=8,
        batch_size=64,
        total_samples=1_000_000,
        zero_stage=2,
        bf16=True,
        bucket_elements=0,
    )
    return World(**{**settings, **changes})  # type: ignore[arg-type]


def test_without_sharding_every_parameter_costs_twenty_bytes() -> None:
    memory = memory_per_gpu([NET], 0, num_gpus=8, images_per_gpu=3, bucket_elements=0)
    assert (memory.weights, memory.gradients, memory.optimizer, memory.average) == (4 * P, 4 * P, 8 * P, 4 * P)
    assert memory.activations == 3 * 1000
    assert memory.total == 20 * P + 3000


def test_stages_shard_what_their_names_say() -> None:
    rows = [memory_per_gpu([NET, JUDGE], stage, 8, 1, bucket_elements=0) for stage in range(4)]
    shard = 2 * P // 8
    assert [row.optimizer for row in rows] == [16 * P, 8 * shard, 8 * shard, 8 * shard]
    assert [row.average for row in rows] == [4 * P, 4 * P // 8, 4 * P // 8, 4 * P // 8]
    assert [row.gradients for row in rows] == [8 * P, 8 * P, 4 * shard, 4 * shard]
    assert [row.weights for row in rows] == [8 * P, 8 * P + 4 * shard, 8 * P + 4 * shard, 8 * P + 8 * shard]


def test_stage_3_bounds_the_gathered_weights() -> None:
    huge = Part("huge", 10**11, 0, averaged=True, flops=0, image_bytes=0, cast_bytes=0)
    gathered = memory_per_gpu([huge], 3, num_gpus=1000, images_per_gpu=1, bucket_elements=0).weights - 8 * 10**8
    assert gathered == 4 * 10**9


def test_frozen_networks_cost_their_weights_alone() -> None:
    memory = memory_per_gpu([FROZEN], 2, num_gpus=8, images_per_gpu=1, bucket_elements=0)
    assert memory.total == 4 * P


def test_a_generation_holds_weights_moments_and_averages() -> None:
    assert generation_bytes([NET, JUDGE, FROZEN]) == 16 * P + 12 * P


def test_speed_of_one_gpu_is_its_peak_times_the_mfu() -> None:
    speed = speed_of([NET], GPUS["h100"], True, 2, num_gpus=1, gpus_per_node=8, batch_size=10)
    assert speed.exchange_seconds == 0
    assert speed.images_per_second == pytest.approx((989 * 0.15, 989 * 0.40))
    assert speed.binds == "compute"


@pytest.mark.parametrize(("zero_stage", "passes"), [(0, 2), (2, 2), (3, 3)])
def test_exchange_moves_the_weights_once_a_pass(zero_stage: int, passes: int) -> None:
    inside = speed_of([NET], GPUS["h100"], True, zero_stage, num_gpus=4, gpus_per_node=8, batch_size=8)
    assert inside.exchange_seconds == pytest.approx(passes * 4 * P * 3 / 4 / 450e9)
    between = speed_of([NET], GPUS["h100"], True, zero_stage, num_gpus=4, gpus_per_node=2, batch_size=8)
    assert between.exchange_seconds == pytest.approx(inside.exchange_seconds * 450 / 50)


def test_what_binds() -> None:
    assert make_plan([NET], {}, world()).binds == "compute"
    assert make_plan([Part("wide", 10**9, 0, True, 10**9, 0, 0)], {}, world()).binds == "exchange"
    assert make_plan([Part("deep", P, 0, True, 10**12, 10**11, 0)], {}, world()).binds == "memory"


def test_hours_follow_from_the_speed() -> None:
    plan = make_plan([NET], {}, world())
    assert plan.hours == pytest.approx([1e6 / rate / 3600 for rate in reversed(plan.speed.images_per_second)])


def test_text_names_every_part_and_the_cost() -> None:
    text = describe(make_plan([NET, FROZEN], {"data": 3 << 30}, world()), price=2.0)
    for words in (
        "net ",
        "1.00 M parameters frozen",
        "data on disk",
        "3.00 GiB",
        "ZeRO 3",
        "at 2 each",
        "binds",
        "host memory           1.9 MiB",
    ):
        assert words in text
