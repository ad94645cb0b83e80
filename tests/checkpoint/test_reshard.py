"""Save on one (ranks, engine, ZeRO stage), restore on another: the same bits, and the same training after."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.checkpoint.reader import read_tensors
from pipeline.checkpoint.store import CheckpointStore
from pipeline.distributed.engine import Engine, EngineConfig, build_engine
from pipeline.distributed.process import start
from tests.checkpoint.saving import save_now
from tests.checkpoint.two_engines import TwoEngines
from tests.distributed.toys import OPTIM, VARIANTS, assemble, distance, train_engine
from tests.ranks import run_ranks

BEFORE, AFTER = range(3), range(3, 5)


class Training(TwoEngines):
    """Trained on pictures of each rank's own."""

    def run(self, steps: range) -> None:
        for step in steps:
            for engine in self.engines:
                train_engine(engine, range(step, step + 1), self.process)
            self.ema.update()


def save_all(root: Path, variants: list[str]) -> None:
    """One checkpoint for each variant, with the state at the save and two steps later beside it."""
    process = start()
    for variant in variants:
        training = Training(variant, process, root / variant)
        training.run(BEFORE)
        torch.manual_seed(5 + process.rank)
        assert save_now(training.store, {"step": len(BEFORE)}, training.parts) == 1
        saved, noise = training.state(), torch.rand(3)
        training.run(AFTER)
        later = training.state()
        torch.save({"saved": saved, "later": later}, root / f"{variant}-{process.rank}.pt")
        torch.save(noise, root / f"{variant}-noise-{process.rank}.pt")


def restore_all(root: Path, pairs: list[tuple[str, str]]) -> dict[tuple[str, str], Any]:
    process = start()
    results = {}
    for source, target in pairs:
        training = Training(target, process, root / source)
        training.run(range(9, 10))  # any other state, to be overwritten
        progress = training.store.restore(training.parts)
        assert progress == {"step": len(BEFORE)}
        noise = root / f"{source}-noise-{process.rank}.pt"
        same_noise = not noise.exists() or torch.equal(torch.load(noise), torch.rand(3))
        reference = torch.load(root / f"{source}-0.pt")
        restored = distance(training.state(), reference["saved"])
        training.run(AFTER)
        results[source, target] = (restored, distance(training.state(), reference["later"]), same_noise)
    return results


def check(results: dict[tuple[str, str], Any], same_ranks: bool) -> None:
    for (source, target), (restored, later, same_noise) in results.items():
        assert restored == 0.0, (source, target)
        assert same_noise, (source, target)
        if same_ranks:
            assert later <= (0.0 if source == target else 1e-6), (source, target)


SAME = [(variant, variant) for variant in VARIANTS]
OTHERS = [("zero2", "zero3"), ("zero3", "accelerate"), ("accelerate", "zero1"), ("zero0", "zero2")]


def save_and_restore(root: Path) -> dict[tuple[str, str], Any]:
    save_all(root, list(VARIANTS))
    return restore_all(root, SAME + OTHERS)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[tuple[str, str], Any]]:
    root = tmp_path_factory.mktemp("two")
    return root, run_ranks(save_and_restore, 2, root)[0]


@pytest.fixture
def saved_by_two(two_ranks: tuple[Path, Any]) -> Path:
    return two_ranks[0]


def test_same_ranks_any_engine(two_ranks: tuple[Path, dict[tuple[str, str], Any]]) -> None:
    check(two_ranks[1], same_ranks=True)


def test_two_ranks_to_one(saved_by_two: Path) -> None:
    pairs = [("zero2", "zero2"), ("zero3", "zero1"), ("accelerate", "zero3"), ("zero1", "accelerate")]
    check(run_ranks(restore_all, 1, saved_by_two, pairs)[0], same_ranks=False)


def test_export_reads_whole_tensors_without_ranks(saved_by_two: Path) -> None:
    for variant in VARIANTS:
        saved = torch.load(saved_by_two / f"{variant}-0.pt")["saved"]
        for part, field in (("first", "param"), ("second", "buffer"), ("first", "exp_avg_sq"), ("first_ema", "ema")):
            tensors = read_tensors(saved_by_two / variant, part, field)
            expected = {k: v for k, v in saved.items() if k.startswith(f"{part}/{field}/")}
            assert distance({f"{part}/{field}/{name}": t for name, t in tensors.items()}, expected) == 0.0


def resume_many_layers(root: Path) -> dict[str, float]:
    """Gradients of several buckets over three ranks, where the order of a sum shows in its last bits."""
    process = start()
    differences = {}
    for variant, config in VARIANTS.items():

        def make(config: EngineConfig = config) -> Engine:
            torch.manual_seed(0)
            layers = [m for _ in range(10) for m in (torch.nn.Linear(300, 300), torch.nn.SiLU())]
            return build_engine(config, "net", torch.nn.Sequential(*layers), OPTIM, process)

        def train(engine: Engine, steps: range) -> None:
            for step in steps:
                x = torch.randn(4, 300, generator=torch.Generator().manual_seed(100 * step + process.rank))
                engine.backward((engine(x) - x).square().mean())
                engine.step(1e-3)

        store, engine = CheckpointStore(root / variant, process), make()
        train(engine, BEFORE)
        save_now(store, {}, {"net": engine})
        train(engine, AFTER)
        resumed = make()
        store.restore({"net": resumed})
        train(resumed, AFTER)
        differences[variant] = distance(assemble(engine), assemble(resumed))
    return differences


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [3, 4])
def test_more_than_two_ranks_resume_exactly(tmp_path: Path, num_ranks: int) -> None:
    assert run_ranks(resume_many_layers, num_ranks, tmp_path)[0] == dict.fromkeys(VARIANTS, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(("writers", "readers"), [(1, 3), (2, 1), (3, 2), (2, 2)])
def test_all_pairs(tmp_path: Path, writers: int, readers: int) -> None:
    variants = ["accelerate", "zero1", "zero2", "zero3"]
    run_ranks(save_all, writers, tmp_path, variants)
    pairs = list(product(variants, variants))
    check(run_ranks(restore_all, readers, tmp_path, pairs, timeout_seconds=900)[0], writers == readers)
