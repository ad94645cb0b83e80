"""How long the steps stand still for a checkpoint: one that is waited for against one that is written beside the steps.

`python -m benchmarks.checkpoint` saves the fp32 weights and both Adam moments of 100 million parameters. The sides take
turns in one process; between the steps of the second, a matrix product stands for training. Prints seconds and ratio.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from pipeline.checkpoint.store import CheckpointStore
from pipeline.distributed.fragments import Field, Fragment, Reader
from pipeline.distributed.process import Process

FIELDS: tuple[Field, ...] = ("param", "exp_avg", "exp_avg_sq")


class State:
    """`num_parameters` in layers of a million, with their moments."""

    def __init__(self, num_parameters: int) -> None:
        layers = range(num_parameters // 1_000_000)
        self.tensors = {(f"layer{i}", f): torch.randn(1_000_000) for i in layers for f in FIELDS}

    def fragments(self) -> list[Fragment]:
        """Every layer, whole."""
        return [Fragment(name, f, tuple(t.shape), 0, t) for (name, f), t in self.tensors.items()]

    def scalars(self) -> dict[str, Any]:
        """None."""
        return {}

    def restore(self, reader: Reader) -> None:
        """Not raced."""


def waited_for(store: CheckpointStore, state: State) -> float:
    """Seconds of a save that the steps wait for."""
    store.save({"samples_seen": 0}, {"state": state})
    done = store.commit()
    store.settle()
    assert done is not None
    return done.stall_seconds


def beside_steps(store: CheckpointStore, state: State, product: torch.Tensor) -> tuple[float, float, float]:
    """(seconds in which the steps stood still, seconds until it was whole, longest step beside it)."""
    began, longest = time.monotonic(), 0.0
    store.save({"samples_seen": 0}, {"state": state})
    while not store.written:
        step = time.monotonic()
        product @ product
        longest = max(longest, time.monotonic() - step)
    done = store.commit()
    whole = time.monotonic() - began
    store.settle()
    assert done is not None
    return done.stall_seconds, whole, longest


def main() -> None:
    """Rounds, medians, ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=int, default=100_000_000, help="default: 100 million")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", default=None, help="where to save (default: the system's temporary folder)")
    args = parser.parse_args()
    state, product, sides = State(args.parameters), torch.randn(512, 512), []
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        store = CheckpointStore(Path(name), Process(), keep=1)
        store.restore({"state": state})  # as a run does: the buffers are made here
        for _ in range(args.rounds):
            sides.append((waited_for(store, state), *beside_steps(store, state, product)))
    waited, stalled, whole, longest = (median(column) for column in zip(*sides, strict=True))
    print(
        f"{args.parameters / 1e6:.0f} M parameters, {12 * args.parameters / 1e9:.2f} GB, {args.rounds} rounds,", end=" "
    )
    print(f"torch {torch.__version__}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"waited for       {waited:6.2f} s of standing still")
    print(f"beside the steps {stalled:6.2f} s of standing still, whole after {whole:.2f} s")
    print(f"ratio            {stalled / waited:6.1%}; longest step beside it {longest * 1e3:.0f} ms")


if __name__ == "__main__":
    main()
