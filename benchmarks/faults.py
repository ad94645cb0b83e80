"""A process killed at every point of a save, and every file of a checkpoint damaged: ours, DeepSpeed's, accelerate's.

`python -m benchmarks.faults` trains a small net on two ranks, saves at step 3, saves again at step 5 and is killed in
it; then two fresh ranks load what is there by the library's own call and train on. A trial is won when the losses from
there on are those of a run that nobody disturbed, bit for bit. Prints for each system and ZeRO stage how many were.
"""

import argparse
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pipeline.checkpoint import writer
from pipeline.checkpoint.store import CheckpointStore
from pipeline.distributed import process as processes
from pipeline.distributed.deepspeed_engine import import_deepspeed, settings
from pipeline.distributed.engine import Engine
from pipeline.optim import build_optimizer
from tests.checkpoint.faults import Injector, Point, damaged, forked, load_libraries
from tests.distributed.toys import OPTIM, VARIANTS, Net, images, make_engine

FIRST, SECOND, LAST = 3, 5, 8
Losses = dict[int, str]


class Ours:
    """The project's own store on one of its engines; `keep=1`, where a save also removes."""

    save_files = ((writer, "save_file"),)

    def __init__(self, folder: Path, variant: str) -> None:
        self.process = processes.start()
        self.engine: Engine = make_engine(variant, self.process)
        self.store = CheckpointStore(folder, self.process, keep=1)

    def step(self, x: torch.Tensor) -> torch.Tensor:
        """One optimizer step; the loss."""
        loss = (self.engine(x).image - x).abs().mean()
        self.engine.backward(loss)
        self.engine.step(1e-2)
        return loss.detach()

    def save(self, step: int) -> None:
        """To the end, the removal of the old one too."""
        self.store.save({"step": step}, {"net": self.engine})
        self.store.commit()
        self.store.settle()

    def load(self) -> int:
        """The step at which it goes on."""
        progress = self.store.restore({"net": self.engine})
        return 0 if progress is None else int(progress["step"])


class DeepSpeed:
    """`save_checkpoint` and `load_checkpoint`."""

    save_files = ()

    def __init__(self, folder: Path, variant: str) -> None:
        self.process, self.folder = processes.start(), folder
        deepspeed, net = import_deepspeed(self.process), Net()
        config = settings(VARIANTS[variant], self.process.device)
        self.engine = deepspeed.initialize(model=net, optimizer=build_optimizer(OPTIM, net), config=config)[0]

    def step(self, x: torch.Tensor) -> torch.Tensor:
        """One optimizer step; the loss."""
        loss = (self.engine.module(x).image - x).abs().mean()
        self.engine.backward(loss)
        self.engine.step()
        return loss.detach()

    def save(self, step: int) -> None:
        """Under a tag of its own; DeepSpeed removes nothing."""
        self.engine.save_checkpoint(str(self.folder), tag=f"step{step}", client_state={"step": step})

    def load(self) -> int:
        """What `latest` names."""
        path, state = self.engine.load_checkpoint(str(self.folder))
        return 0 if path is None else int(state["step"])


class Accelerate:
    """`save_state` and `load_state` with automatic names and total_limit=1."""

    save_files = ()

    def __init__(self, folder: Path, variant: str) -> None:
        from accelerate import Accelerator
        from accelerate.utils import ProjectConfiguration

        self.process, self.count = processes.start(), Counted()
        project = ProjectConfiguration(str(folder), automatic_checkpoint_naming=True, total_limit=1)
        self.accelerator = Accelerator(cpu=True, project_config=project)
        net = Net()
        self.net, self.adam = self.accelerator.prepare(net, build_optimizer(OPTIM, net))
        self.accelerator.register_for_checkpointing(self.count)

    def step(self, x: torch.Tensor) -> torch.Tensor:
        """One optimizer step; the loss."""
        loss = (self.net(x).image - x).abs().mean()
        self.accelerator.backward(loss)
        self.adam.step()
        self.adam.zero_grad()
        return loss.detach()

    def save(self, step: int) -> None:
        """Removes the one before first."""
        self.count.step = step
        self.accelerator.project_configuration.iteration = step
        self.accelerator.save_state()

    def load(self) -> int:
        """The newest by name."""
        self.accelerator.load_state()
        return self.count.step


class Counted:
    """The step, for accelerate to keep."""

    step = 0

    def state_dict(self) -> dict[str, int]:
        """As torch names it."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """As torch names it."""
        self.step = state["step"]


@dataclass(frozen=True)
class System:
    """One competitor on one engine."""

    name: str
    make: Callable[[Path, str], Any]
    variant: str


ZERO = ("zero0", "zero1", "zero2", "zero3")
SYSTEMS = {
    "ours": [System("Tessera", Ours, variant) for variant in (*ZERO, "accelerate")],
    "deepspeed": [System("DeepSpeed", DeepSpeed, variant) for variant in ZERO],
    "accelerate": [System("accelerate", Accelerate, "accelerate")],
}


def train(run: Any, begin: int, end: int) -> Losses:
    """Steps [begin, end): the loss of each on this rank, exact."""
    return {s: float(run.step(images(s, run.process.rank))).hex() for s in range(begin, end)}


def quiet(system: System, folder: Path) -> Losses:
    """A run that nobody disturbs."""
    return train(system.make(folder, system.variant), 0, LAST)


def save_once(system: System, folder: Path) -> None:
    """A run that ends after its first save, with no trouble."""
    run = system.make(folder, system.variant)
    train(run, 0, FIRST)
    run.save(FIRST)


def hurt(system: System, folder: Path, point: Point | None) -> list[Point]:
    """Both saves; the second is watched, or ends at `point`."""
    run = system.make(folder, system.variant)
    train(run, 0, FIRST)
    run.save(FIRST)
    train(run, FIRST, SECOND)
    mine = point if point is not None and point.rank == run.process.rank else None
    injector = Injector(mine, list(run.save_files))
    run.save(SECOND)
    return injector.points(run.process.rank)


def resume(system: System, folder: Path) -> Losses:
    """What the library loads, and the losses from there."""
    run = system.make(folder, system.variant)
    return train(run, run.load(), LAST)


def won(expected: list[Losses], found: list[Any]) -> str:
    """Empty when every rank went on from a save to the expected numbers; otherwise what happened."""
    for want, got in zip(expected, found, strict=True):
        if not isinstance(got, dict):
            return f"cannot load: {type(got).__name__}: {str(got).splitlines()[0][:60] if str(got) else ''}"
        if min(got) == 0:
            return "starts from scratch"
        if any(want[step] != loss for step, loss in got.items()):
            return "loads other numbers, and says nothing"
    return "" if len({min(got) for got in found}) == 1 else "ranks go on from different steps"


def trials(system: System, place: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Point or damage -> what happened (empty: won), for kills and for damage."""
    expected = forked(quiet, system, place / "quiet")
    watched = forked(hurt, system, place / "whole", None)
    kills, damages = {}, {}
    for point in [point for points in watched for point in points]:
        folder = place / "killed"
        forked(hurt, system, folder, point)
        kills[f"rank {point.rank} {point.number} {point.name}"] = won(expected, forked(resume, system, folder))
        shutil.rmtree(folder)
    two = place / "two"
    forked(two_saves, system, two)
    for name, folder in damaged(two, place / "damaged"):
        damages[name] = won(expected, forked(resume, system, folder))
    return kills, damages


def two_saves(system: System, folder: Path) -> None:
    """Both saves, the first of which stays where the system can be told so."""
    run = system.make(folder, system.variant)
    if isinstance(run, Ours):
        run.store.keep = 2
    if isinstance(run, Accelerate):
        run.accelerator.project_configuration.total_limit = 2
    for begin, end in ((0, FIRST), (FIRST, SECOND)):
        train(run, begin, end)
        run.save(end)


def main() -> None:
    """One line for each system and engine, and below it what went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("systems", nargs="*", choices=[*SYSTEMS, []], help="default: all")
    args = parser.parse_args()
    load_libraries()
    print(*(f"{name} {version(name)}" for name in ("torch", "deepspeed", "accelerate")), sep=", ")
    print(f"{'':<24}{'killed in a save':>20}{'a file damaged':>20}")
    for system in (system for name in args.systems or SYSTEMS for system in SYSTEMS[name]):
        with tempfile.TemporaryDirectory() as name:
            kills, damages = trials(system, Path(name))
        cells = (f"{sum(not v for v in found.values())} of {len(found)}" for found in (kills, damages))
        print(f"{system.name + ', ' + system.variant:<24}" + "".join(f"{cell:>20}" for cell in cells), flush=True)
        for where, what in (*kills.items(), *damages.items()):
            if what:
                print(f"    {where}: {what}", flush=True)


if __name__ == "__main__":
    main()
