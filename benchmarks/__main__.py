"""Run every race: `python -m benchmarks`, or `make bench`."""

import os
import platform
import tempfile
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import torch

from benchmarks import codebook, data, diffusion, encoders, gan_step, sharding

PACKAGES = ("torch", "webdataset", "vector-quantize-pytorch", "diffusers", "ray")


def main() -> None:
    """Versions, then one block for each race."""
    print(f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in PACKAGES), sep=", ", end="; ")
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        shards = data.make_shards(Path(folder))
        for result in chain(
            data.races(shards),
            codebook.races(),
            gan_step.races(),
            diffusion.races(),
            encoders.races(Path(folder) / "encoders"),
            sharding.races(Path(folder) / "sharding"),
        ):
            print(f"\n{result}", flush=True)


if __name__ == "__main__":
    main()
