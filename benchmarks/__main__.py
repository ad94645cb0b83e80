"""Run the races: all by `python -m benchmarks` or `make bench`, some by `python -m benchmarks encoders sharding`."""

import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks import codebook, data, diffusion, encoders, gan_step, sharding

PACKAGES = ("torch", "webdataset", "vector-quantize-pytorch", "diffusers", "ray")

RACES: dict[str, Callable[[Path], Iterable[object]]] = {
    "data": lambda folder: data.races(data.make_shards(folder)),
    "codebook": lambda folder: codebook.races(),
    "gan_step": lambda folder: gan_step.races(),
    "diffusion": lambda folder: diffusion.races(),
    "encoders": lambda folder: encoders.races(folder / "encoders"),
    "sharding": lambda folder: sharding.races(folder / "sharding"),
}
"""By name; each gets a folder of its own to work in."""


def main() -> None:
    """Versions, then one block for each race that was named."""
    names = sys.argv[1:] or list(RACES)
    if unknown := sorted(set(names) - set(RACES)):
        sys.exit(f"no race is called {', '.join(unknown)}; there are {', '.join(RACES)}")
    print(f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in PACKAGES), sep=", ", end="; ")
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads", flush=True)
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            for result in RACES[name](Path(folder)):
                print(f"\n{result}", flush=True)


if __name__ == "__main__":
    main()
