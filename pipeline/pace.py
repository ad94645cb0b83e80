"""How far a run has come and how fast it goes: the state that a generation carries, and the clock of the console line.

Used by `pipeline.trainer`.
"""

import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta

import psutil
import torch

from pipeline.data.batch import Batch
from pipeline.distributed.beacon import BEACON
from pipeline.distributed.exchange import ExchangeProbe

Peak = Callable[[int], float]
"""From samples seen to the images per second of all ranks at their devices' peak."""


@dataclass
class TrainState:
    """How far the run has come."""

    samples_seen: int = 0
    """Samples trained on, over all ranks and attempts."""
    step: int = 0
    """Optimizer steps made."""

    def after(self, num_samples: int) -> "TrainState":
        """One step of so many samples later."""
        return TrainState(self.samples_seen + num_samples, self.step + 1)


class Pace:
    """The speed of the steps since the last line, in which the time of validation, pictures and saving does not count;
    and how much of this start was effective."""

    def __init__(
        self,
        total_samples: int,
        state: TrainState,
        starting_seconds: float,
        world_size: int = 1,
        peak: Peak | None = None,
    ) -> None:
        """Args: starting_seconds: what went by between the process's begin and now, the begin of training."""
        self.exchange, self.peak = ExchangeProbe(world_size), peak
        self.total_samples, self.lap_began_at = total_samples, state
        self.step_began = self.seconds = self.seconds_waited = self.seconds_stalled = self.samples_per_second = 0.0
        self.began, self.starting_seconds, self.all_seconds_stalled = time.monotonic(), starting_seconds, 0.0

    def waiting_for(self, batches: Iterator[Batch], step: int) -> Batch:
        """The next batch. Step number `step` begins; the time until the batch comes is a data stall."""
        BEACON.note("data", step)
        self.step_began = time.monotonic()
        batch = next(batches)
        BEACON.note("step")
        self.seconds_waited += time.monotonic() - self.step_began
        return batch

    def exchanging(self) -> AbstractContextManager[None]:
        """Around all of a step in which ranks wait for each other."""
        return self.exchange.watching()

    def stepped(self) -> None:
        """The step is over."""
        self.seconds += time.monotonic() - self.step_began

    def stalled(self, seconds: float) -> None:
        """The steps stood still for a checkpoint that is whole now."""
        self.seconds_stalled += seconds
        self.all_seconds_stalled += seconds

    def lap(self, state: TrainState) -> dict[str, float]:
        """The speed since the last lap, as metrics of the journal; begins the next lap."""
        seconds = max(self.seconds, 1e-9)
        self.samples_per_second = (state.samples_seen - self.lap_began_at.samples_seen) / seconds
        speed = {
            "steps_per_second": (state.step - self.lap_began_at.step) / seconds,
            "images_per_second": self.samples_per_second,
            "data_stall_share": self.seconds_waited / seconds,
            "checkpoint_stall_share": self.seconds_stalled / (seconds + self.seconds_stalled),
            "ettr": self.ettr(time.monotonic() - self.began),
            "memory_peak_gib": peak_memory_bytes() / 2**30,
        }
        if self.peak is not None:
            speed["mfu"] = self.samples_per_second / self.peak(self.lap_began_at.samples_seen)
        if self.exchange.share is not None:
            speed["communication_share"] = self.exchange.share
        self.lap_began_at, self.seconds, self.seconds_waited, self.seconds_stalled = state, 0.0, 0.0, 0.0
        return speed

    def ettr(self, seconds: float) -> float:
        """The effective training time ratio of this start alone, `seconds` after training began.

        As `pipeline.tracking.effective` counts for the report: steps with the validation and pictures between them are
        productive; imports, models, data, restoring and checkpoint stalls are not. Steps that a later start does again
        and the time between starts are known to the report alone.
        """
        return max(seconds - self.all_seconds_stalled, 0.0) / max(self.starting_seconds + seconds, 1e-9)

    def line(self, state: TrainState, metrics: Mapping[str, float]) -> str:
        """One console line: where, how fast, how good, how long still."""
        left = max(self.total_samples - state.samples_seen, 0) / max(self.samples_per_second, 1e-9)
        losses = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items() if name.endswith("_loss"))
        mfu = f"MFU {metrics['mfu']:.0%}  " if "mfu" in metrics else ""
        unreadable = f"unreadable {metrics['unreadable_samples']:.0f}  " if metrics.get("unreadable_samples") else ""
        waiting = f"communication {metrics['communication_share']:.0%}  " if "communication_share" in metrics else ""
        return (
            f"{state.samples_seen:>9,}/{self.total_samples:,} samples  "
            f"{metrics['steps_per_second']:.2f} steps/s  {metrics['images_per_second']:.1f} images/s  {mfu}"
            f"data stall {metrics['data_stall_share']:.0%}  {unreadable}{waiting}"
            f"checkpoint stall {metrics['checkpoint_stall_share']:.0%}  ETTR {metrics['ettr']:.0%}  "
            f"memory {metrics['memory_peak_gib']:.1f} GiB  {losses}  left {timedelta(seconds=round(left))}"
        )


def process_age_seconds() -> float:
    """Seconds since the kernel made this process."""
    return max(time.time() - psutil.Process().create_time(), 0.0)


def peak_memory_bytes() -> int:
    """The most that this rank has held at once: allocated on its GPU since the last call, or resident on a CPU."""
    if torch.cuda.is_initialized():
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return peak
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): kilobytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
