"""Which rank holds up a run: reads what the ranks say of themselves. Called by `watchdog`.

A process that says nothing is dead or stopped. When all speak and none makes a step, those furthest behind hold up the
others, who wait for them in a collective.
"""

import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil

from pipeline.distributed.beacon import PATIENT

ORDER = ("start", "data", "step", "validation", "preview", "checkpoint")
"""Phases of one step: of two ranks at one step, that in the earlier phase is behind."""

Fault = tuple[str, list[int]]
"""What is wrong in words, and with which ranks."""


@dataclass
class Seen:
    """What a watcher knows of a rank."""

    beat: dict[str, Any]
    """The newest line; empty before the first."""
    heard: float
    """Own clock when it last changed at all."""
    moved: float
    """Own clock when step or phase last changed."""


def find_silent(seen: Mapping[int, Seen], now: float, hang_seconds: float) -> Fault | None:
    """Ranks that have not said a word for `hang_seconds` on the clock `now`."""
    silent = {r: s for r, s in _at_work(seen).items() if s.beat and now - s.heard > hang_seconds}
    if not silent:
        return None
    texts = [f"{_name(s.beat)} is silent for {now - s.heard:.0f} s{_state(s.beat)}" for s in silent.values()]
    return "; ".join(texts) + ": its process is dead, stopped or cut off from the run folder", list(silent)


def find_late(seen: Mapping[int, Seen], now: float, hang_seconds: float) -> Fault | None:
    """Ranks for which the others have waited for `hang_seconds`; `seen` has to hold all ranks."""
    places = {}
    for rank, s in _at_work(seen).items():
        if not s.beat or s.beat["phase"] in PATIENT or now - s.moved <= hang_seconds:
            return None
        places[rank] = (s.beat["step"], ORDER.index(s.beat["phase"]))
    late = [rank for rank, place in places.items() if place == min(places.values())]
    text = "; ".join(_name(seen[rank].beat) for rank in late[:8])
    if not late:
        return None
    if len(late) < len(places):
        return f"{text} holds up the others, no step for {hang_seconds:.0f} s", late
    return f"no step for {hang_seconds:.0f} s; all ranks are in it alike: {text}", []


def _at_work(seen: Mapping[int, Seen]) -> dict[int, Seen]:
    return {rank: s for rank, s in seen.items() if not s.beat.get("ended")}


def _name(beat: Mapping[str, Any]) -> str:
    shard = f", {beat['shard']}" if beat.get("shard") and beat.get("phase") == "data" else ""
    return f"rank {beat['rank']} on {beat['host']} (process {beat['pid']}, step {beat['step']}, {beat['phase']}{shard})"


def _state(beat: Mapping[str, Any]) -> str:
    """What the kernel says of a process of this machine."""
    if beat.get("host") != socket.gethostname():
        return ""
    with suppress(psutil.Error):
        return f" ({psutil.Process(beat['pid']).status()})"
    return " (gone)"
