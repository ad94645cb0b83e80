"""Every pair of (ranks, engine): saved by one, restored by the other to the same bits, and trained on to the same loss.

One world for each number of ranks writes for all engines; one for each number reads everything that all have written.
Each step sees the same twelve pictures, whatever the number of ranks.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.distributed.engine import Engine
from pipeline.distributed.process import mean_of_floats, start
from tests.checkpoint.saving import save_now
from tests.checkpoint.two_engines import TwoEngines
from tests.distributed.toys import distance, images
from tests.ranks import run_ranks

RANKS, VARIANTS = (1, 2, 3, 4), ("accelerate", "zero0", "zero1", "zero2", "zero3")
GLOBAL_BATCH = 12
BEFORE, AFTER = range(3), range(3, 13)


class Run(TwoEngines):
    """Trained on the same pictures by any number of ranks."""

    def train(self, steps: range) -> float:
        """Mean loss of the last step over both engines and all ranks."""
        for step in steps:
            losses = [self.step(engine, step) for engine in self.engines]
            self.ema.update()
        return sum(mean_of_floats(losses))

    def step(self, engine: Engine, step: int) -> float:
        x = images(step, 0, GLOBAL_BATCH).chunk(self.process.world_size)[self.process.rank]
        loss = (engine(x).image - x).abs().mean()
        engine.backward(loss)
        engine.step(1e-2 / (1 + step))
        return float(loss.detach())


def save_all(root: Path) -> None:
    """One checkpoint of each engine on this many ranks; beside it the state and the loss ten steps later."""
    process = start()
    for variant in VARIANTS:
        run = Run(variant, process, root / f"{process.world_size}-{variant}")
        run.train(BEFORE)
        save_now(run.store, {"step": len(BEFORE)}, run.parts)
        saved = run.state()
        later = run.train(AFTER)
        if process.is_main:
            torch.save({"saved": saved, "loss": later}, root / f"{process.world_size}-{variant}.pt")


def restore_all(root: Path, sources: list[str]) -> dict[tuple[str, str], tuple[float, float]]:
    """(source, target) -> largest difference of any element after restoring, and of the loss ten steps later."""
    process, found = start(), {}
    for target in VARIANTS:
        for source in sources:
            run = Run(target, process, root / source)
            run.train(range(20, 21))  # any other state, to be overwritten
            assert run.store.restore(run.parts) == {"step": len(BEFORE)}
            reference: dict[str, Any] = torch.load(root / f"{source}.pt")
            difference = distance(run.state(), reference["saved"])
            key = (source, f"{process.world_size}-{target}")
            found[key] = (difference, abs(run.train(AFTER) - reference["loss"]))
    return found


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every topology has saved."""
    root = tmp_path_factory.mktemp("elastic")
    for num_ranks in RANKS:
        run_ranks(save_all, num_ranks, root, timeout_seconds=900)
    return root


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("num_ranks", RANKS)
def test_every_pair(saved: Path, num_ranks: int) -> None:
    sources = [f"{ranks}-{variant}" for ranks in RANKS for variant in VARIANTS]
    for found in run_ranks(restore_all, num_ranks, saved, sources, timeout_seconds=3000):
        assert len(found) == len(RANKS) * len(VARIANTS) ** 2
        print(f"{num_ranks} ranks: {len(found)} pairs, state {max(found.values())[0]}, loss", end=" ")
        print(f"{max(loss for _, loss in found.values()):.1e}")
        for pair, (state, loss) in found.items():
            assert state == 0.0 and loss <= 1e-6, (pair, state, loss)
