"""The share of a step that only the exchange takes: by arithmetic on spans, and on two real ranks."""

import time
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import DeviceType

from pipeline.distributed.exchange import (
    EVERY_STEPS,
    FIRST_STEP,
    NUM_STEPS,
    ExchangeProbe,
    covered_seconds,
    exposed_seconds,
    spans_of,
)
from pipeline.distributed.process import start
from tests.ranks import run_ranks

LATE_SECONDS = 0.1


def test_exposed_by_hand() -> None:
    assert exposed_seconds([(0, 4)], [(1, 2), (3, 5)]) == 2
    assert exposed_seconds([(0, 2), (1, 3)], []) == 3, "two at a time are one wait"
    assert exposed_seconds([], [(0, 9)]) == 0
    assert covered_seconds([(5, 6), (0, 2), (2, 3), (1, 2)]) == 4


moments = st.integers(0, 30)
spans = st.lists(st.tuples(moments, moments).map(lambda pair: (min(pair), max(pair))), max_size=8)


@given(spans, spans)
def test_exposed_moment_by_moment(collectives: list[tuple[int, int]], arithmetic: list[tuple[int, int]]) -> None:
    def at(moment: int, found: list[tuple[int, int]]) -> bool:
        return any(begin <= moment < end for begin, end in found)

    expected = sum(at(moment, collectives) and not at(moment, arithmetic) for moment in range(30))
    assert exposed_seconds(collectives, arithmetic) == expected


def event(name: str, begin: float, end: float, on_gpu: bool = False, annotation: bool = False) -> SimpleNamespace:
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    span = SimpleNamespace(start=begin * 1e6, end=end * 1e6)
    return SimpleNamespace(name=name, time_range=span, device_type=kind, is_user_annotation=annotation)


def test_on_a_gpu_its_kernels_count_and_not_what_the_processor_did() -> None:
    events = [
        event("aten::mm", 0, 9),
        event("ncclDevKernel_AllReduce_Sum_f32_RING_LL", 1, 4, on_gpu=True),
        event("sm90_xmma_gemm_bf16", 0, 2, on_gpu=True),
        event("nccl:all_reduce", 0, 9, on_gpu=True, annotation=True),
    ]
    assert spans_of(events) == ([(1, 4)], [(0, 2)])
    assert spans_of([event("gloo:all_reduce", 1, 2), event("aten::mm", 0, 1), event("step", 0, 9)]) == (
        [(1, 2)],
        [(0, 1)],
    )


def waits(hidden: bool) -> float | None:
    """Rank 1 comes `LATE_SECONDS` late; rank 0 waits for it, or multiplies matrices meanwhile."""
    process = start()
    probe, values = ExchangeProbe(process.world_size), torch.ones(1000)
    matrix = torch.rand(256, 256)
    for step in range(1, FIRST_STEP + NUM_STEPS):
        with probe.watching():
            late = LATE_SECONDS if step >= FIRST_STEP else 0.0
            time.sleep(late * process.rank)
            work = dist.all_reduce(values, async_op=True)
            until = time.perf_counter() + 2 * late * hidden
            while process.rank == 0 and time.perf_counter() < until:
                matrix @ matrix
            work.wait()
    return probe.share


@pytest.mark.parametrize("hidden", [False, True])
def test_two_ranks_of_which_one_is_late(hidden: bool) -> None:
    share, _ = run_ranks(waits, 2, hidden)
    assert share is not None
    assert share < 0.3 if hidden else share > 0.7


def test_alone_or_between_two_looks_nothing_is_watched() -> None:
    alone = ExchangeProbe(1)
    for _ in range(FIRST_STEP + EVERY_STEPS):
        with alone.watching():
            pass
    assert alone.share is None
    probe = ExchangeProbe(2)
    for _ in range(FIRST_STEP - 1):
        with probe.watching():
            pass
    assert probe.share is None
    looks = []
    for _ in range(EVERY_STEPS + NUM_STEPS):
        before, probe.share = probe.share, None
        with probe.watching():
            torch.ones(3).sum()
        looks.append(probe.share is not None)
        assert probe.share in (None, 0), "no collective ran"
        probe.share = before
    assert [i for i, look in enumerate(looks) if look] == [0, 1, 2, 3, 4, 2000, 2001, 2002, 2003, 2004]
