"""How much of a step goes by while this rank does nothing but exchange with the others.

What DDP and ZeRO send travels beside the arithmetic, where a clock around the call cannot tell the two apart. So a
few steps in many are watched by torch's profiler, and what counts is the time in which a collective ran and no
arithmetic did: on a GPU its kernels on all streams, on a CPU gloo's operations and those of the step's own thread.
Waiting for a slower rank is part of it. Called by `pipeline.pace`.
"""

import math
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

FIRST_STEP = 20
"""Of a start: the first one that is watched; the ones before still warm up."""
NUM_STEPS = 5
"""Steps watched in a row: one alone may have waited for anything."""
EVERY_STEPS = 2000
"""Distance of two looks; a watched step may cost twice the time of another, so a run 0.25 %."""

Span = tuple[float, float]


class ExchangeProbe:
    """Counts the steps of one start, and watches some of them; a world of one exchanges nothing."""

    def __init__(self, world_size: int) -> None:
        self.world_size, self.num_steps = world_size, 0
        self.share: float | None = None
        """Of the newest look: time in which only the exchange went on, over all of it; None until then."""
        self._exposed = self._seconds = 0.0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Around each step, until its last collective has ended."""
        self.num_steps += 1
        watched = (self.num_steps - FIRST_STEP) % EVERY_STEPS  # counts 0, 1, ... from the first step of a look
        if self.world_size == 1 or self.num_steps < FIRST_STEP or watched >= NUM_STEPS:
            yield
            return
        if watched == 0:
            self._exposed = self._seconds = 0.0
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # it tells of every start and stop otherwise
        with profile(activities=_activities(), acc_events=False) as profiler:
            began = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - began
        self._exposed += exposed_seconds(*spans_of(profiler.events() or ()))
        self.share = self._exposed / self._seconds


def spans_of(events: Iterable[Any]) -> tuple[list[Span], list[Span]]:
    """(collectives, arithmetic) as spans in seconds, from the profiler's events: a GPU's where there are any."""
    events = list(events)
    on_gpu = [e for e in events if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
    if on_gpu:
        collectives = [e for e in on_gpu if "nccl" in e.name.lower()]
        arithmetic = [e for e in on_gpu if "nccl" not in e.name.lower()]
    else:
        collectives = [e for e in events if e.name.startswith("gloo:")]
        arithmetic = [e for e in events if e.name.startswith("aten::")]
    return _seconds(collectives), _seconds(arithmetic)


def exposed_seconds(collectives: Iterable[Span], arithmetic: Iterable[Span]) -> float:
    """How long at least one of `collectives` went on while none of `arithmetic` did; spans may overlap in any way."""
    busy = list(arithmetic)
    return covered_seconds([*busy, *collectives]) - covered_seconds(busy)


def covered_seconds(spans: Iterable[Span]) -> float:
    """How long at least one of `spans` went on."""
    covered, until = 0.0, -math.inf
    for begin, end in sorted(spans):
        covered += max(end - max(begin, until), 0.0)
        until = max(until, end)
    return covered


def _activities() -> list[ProfilerActivity]:
    gpu = [ProfilerActivity.CUDA] if torch.cuda.is_initialized() else []
    return [ProfilerActivity.CPU, *gpu]


def _seconds(events: Iterable[Any]) -> list[Span]:
    return [(e.time_range.start / 1e6, e.time_range.end / 1e6) for e in events]
