"""The one loop, with a toy stage: exact resume after stops and kills, cadences, order of events, agreement of ranks."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.checkpoint.store import CheckpointStore
from pipeline.config import UserError
from pipeline.data.batch import Batch
from pipeline.distributed.ema import Ema, EmaConfig
from pipeline.distributed.fragments import Stateful
from pipeline.distributed.process import Process, start
from pipeline.health import MAX_SKIPPED_STEPS, DivergedError, Health
from pipeline.pace import Pace, TrainState, process_age_seconds
from pipeline.trainer import TrainerConfig, due, fit
from tests.distributed.toys import assemble, make_engine
from tests.ranks import run_ranks

CONFIG = TrainerConfig(
    total_samples=40, batch_size=4, checkpoint_every_samples=12, validate_every_samples=16, log_every_steps=1
)


class ToyStage:
    """An engine, an average, and a draw from torch's global generator in each step, so that its state matters."""

    def __init__(self, process: Process, variant: str = "accelerate", at_step: Callable[[int], None] | None = None):
        self.engine = make_engine(variant, process)
        self.ema = Ema(self.engine, EmaConfig(decay=0.9))
        self.at_step = at_step or (lambda step: None)
        torch.manual_seed(11 + process.rank)

    def train_step(
        self, batch: Batch, step: int, samples_seen: int, total_samples: int
    ) -> Mapping[str, Tensor | float]:
        self.at_step(step)
        assert total_samples == 40
        assert batch.images is not None
        x = batch.images + 0.1 * torch.randn(batch.images.shape)
        loss = (self.engine(x).image - x).abs().mean()
        self.engine.backward(loss)
        norm = self.engine.step(1e-2)
        self.ema.update()
        return {"toy_loss": loss.detach(), "gradient_norm": norm}

    def validate(self, batches: Iterable[Batch]) -> Mapping[str, float]:
        with self.ema.applied(), torch.no_grad():
            values = [float(self.engine(batch.images).image.mean()) for batch in batches]
        return {"validation_mean": sum(values) / len(values)}

    def preview(self) -> np.ndarray:
        return np.zeros((4, 6, 3), dtype=np.uint8)

    def where_not_finite(self, batch: Batch) -> str | None:
        return "net.weight"

    def parts(self) -> Mapping[str, Stateful]:
        return {"net": self.engine, "ema": self.ema}

    def state(self) -> dict[str, Tensor]:
        return assemble(self.engine) | assemble(self.ema)


class ToyLoader:
    """Sample g is a picture drawn by g alone; behind `until` samples a step has half as many."""

    def __init__(self, process: Process, digest: str = "shapes", until: int = 10**9) -> None:
        self.process, self.digest, self.until, self.opened = process, digest, until, False
        self.quarantined = 1 + process.rank

    def batch_size_at(self, samples_seen: int) -> int:
        return 4 if samples_seen < self.until else 2

    def validation_at(self, samples_seen: int) -> Iterable[Batch]:
        return islice(ToyLoader(self.process).batches(1000 if samples_seen < self.until else 2000), 2)

    def batches(self, samples_seen: int) -> Iterator[Batch]:
        self.opened = True
        while True:
            share = self.batch_size_at(samples_seen) // self.process.world_size
            first = samples_seen + share * self.process.rank
            ids = list(range(first, first + share))
            images = [torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(g)) for g in ids]
            yield Batch(ids, [0] * share, [""] * share, [""] * share, torch.stack(images))
            samples_seen += share * self.process.world_size


class ToyJournal:
    """Keeps what happened, in order; also on disk, so that a kill does not take it along."""

    def __init__(self, path: Path) -> None:
        self.path, self.words, self.unreadable = path, list[str](), 0.0

    def add(self, *event: Any) -> None:
        with self.path.open("a") as file:
            file.write(f"{event!r}\n")

    def metrics(self, values: Mapping[str, float], step: int, samples_seen: int) -> None:
        exact = {name: value.hex() for name, value in values.items() if name in ("toy_loss", "validation_mean")}
        self.add("metrics", samples_seen, exact)
        self.unreadable = values.get("unreadable_samples", self.unreadable)

    def picture(self, name: str, path: Path, samples_seen: int) -> None:
        self.add("picture", samples_seen, path.name)

    def committed(self, generation: int, samples_seen: int, stall_seconds: float) -> None:
        self.add("committed", samples_seen, generation)

    def resumed(self, samples_seen: int) -> None:
        self.add("resumed", samples_seen)

    def served(self, first: int, batch_size: int, ranks: int, words: Sequence[str]) -> None:
        self.words += words

    def events(self) -> list[str]:
        return self.path.read_text().splitlines()

    def figures(self) -> dict[str, str]:
        """The last value of every metric at every sample: what a chart shows after a resume."""
        return {
            line.partition("{")[0] + line[line.index("{") : line.index(":")]: line
            for line in self.events()
            if line.startswith("('metrics'")
        }


def run(
    folder: Path,
    process: Process | None = None,
    config: TrainerConfig = CONFIG,
    digest: str = "shapes",
    variant: str = "accelerate",
    at_step: Callable[[int], None] | None = None,
    until: int = 10**9,
) -> tuple[TrainState, ToyStage, ToyJournal, ToyLoader]:
    process = process or start()
    folder.mkdir(exist_ok=True)
    stage, loader = ToyStage(process, variant, at_step), ToyLoader(process, digest, until)
    journal = ToyJournal(folder / f"journal-{process.rank}")
    store = CheckpointStore(folder / "checkpoints", process, config.keep_checkpoints)

    return fit(stage, loader, store, journal, process, config, folder / "samples"), stage, journal, loader


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def ask_to_stop(at: int, number: int) -> Callable[[int], None]:
    return lambda step: os.kill(os.getpid(), number) if step == at else None


@given(st.lists(st.integers(1, 50), min_size=1), st.integers(1, 60))
def test_due_once_for_each_multiple(batches: list[int], every: int) -> None:
    places = [0, *np.cumsum(batches).tolist()]
    hits = [due(before, after, every) for before, after in zip(places, places[1:], strict=False)]
    crossed = {after // every for after in places} - {0}
    assert sum(hits) == len(crossed)
    assert not due(0, 10**9, 0)


def test_order_of_events(tmp_path: Path) -> None:
    state, _, journal, _ = run(tmp_path)
    assert state == TrainState(40, 10)
    kinds = [line.split(",")[0][2:-1] + line.split(",")[1].rstrip(")") for line in journal.events()]
    logged = [kind for kind in kinds if not kind.startswith("metrics")]
    commits = [kind for kind in logged if kind != "picture 40"]  # each a step or more after its save
    assert commits == ["committed 12", "committed 24", "committed 36", "committed 40"]
    assert kinds.count("metrics 16") == 2 and kinds.count("metrics 20") == 1  # the loss, and validation beside it
    assert [k for k in kinds if k.endswith(" 40")] == ["metrics 40", "metrics 40", "picture 40", "committed 40"]
    assert kinds[-1] == "committed 40"
    assert (tmp_path / "samples" / "preview-0000000040.png").read_bytes().startswith(b"\x89PNG")


def test_a_finished_run_opens_no_data(tmp_path: Path) -> None:
    run(tmp_path)
    state, _, journal, loader = run(tmp_path)
    assert state.samples_seen == 40 and not loader.opened
    assert journal.events()[-1] == "('resumed', 40)"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_stopped_and_resumed_equals_uninterrupted(tmp_path: Path, number: int) -> None:
    _, whole, reference, _ = run(tmp_path / "whole")
    handler = signal.getsignal(number)
    state, _, journal, _ = run(tmp_path / "cut", at_step=ask_to_stop(4, number))
    assert state == TrainState(20, 5)  # the step in which the signal came was finished
    assert journal.events()[-1] == "('committed', 20, 2)"
    assert signal.getsignal(number) is handler
    state, resumed, journal, _ = run(tmp_path / "cut")
    assert state == TrainState(40, 10)
    assert equal(resumed.state(), whole.state())
    assert journal.figures() == reference.figures()
    assert journal.words == reference.words[5:]


def run_and_die(folder: Path, at: int) -> None:
    """A run that kills its own process at a step."""
    run(folder, at_step=ask_to_stop(at, signal.SIGKILL))


@pytest.mark.parametrize("at", [1, 4, 9])
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, at: int) -> None:
    _, whole, reference, _ = run(tmp_path / "whole")
    child = multiprocessing.get_context("spawn").Process(target=run_and_die, args=(tmp_path / "cut", at))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    _, resumed, journal, _ = run(tmp_path / "cut")
    assert equal(resumed.state(), whole.state())
    assert journal.figures() == reference.figures()


class Crash(Exception):
    """The end of an attempt, at once."""


def crash(at: int) -> Callable[[int], None]:
    def at_step(step: int) -> None:
        if step == at:
            raise Crash

    return at_step


def test_a_run_of_two_phases_crashes_at_any_step_and_goes_on_to_the_same_end(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"checkpoint_every_samples": 4})  # one of them exactly where the phases meet
    state, whole, reference, _ = run(tmp_path / "whole", config=config, until=18)
    assert state == TrainState(40, 5 + 10)  # five steps of 4, then ten of 2
    for at in range(1, 15):
        with pytest.raises(Crash):
            run(tmp_path / f"{at}", config=config, at_step=crash(at), until=18)
        state, resumed, journal, _ = run(tmp_path / f"{at}", config=config, until=18)
        assert state == TrainState(40, 15)
        assert equal(resumed.state(), whole.state())
        assert journal.figures() == reference.figures()


def test_other_data_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(UserError, match="trained on the data shapes, data.train is emoji"):
        run(tmp_path, digest="emoji")


def test_divergence_names_step_and_term(tmp_path: Path) -> None:
    def spoil(step: int) -> None:
        if step == 6:
            stage_weights = next(iter(stage.engine.module.parameters()))
            stage_weights.data.fill_(float("nan"))

    process = Process()
    stage, journal = ToyStage(process, at_step=spoil), ToyJournal(tmp_path / "journal")
    store = CheckpointStore(tmp_path / "checkpoints", process)
    with pytest.raises(DivergedError, match="step 7: toy_loss is nan, first in net.weight"):
        fit(stage, ToyLoader(process), store, journal, process, CONFIG, tmp_path)
    # Nothing of the spoilt step was written down; the save of the step before may still have been in flight.
    done = store.commit()
    assert journal.events()[-1] == "('committed', 24, 2)" or (done and done.progress["samples_seen"] == 24)


def test_steps_that_never_happen_end_the_run() -> None:
    health = Health()
    for step in range(MAX_SKIPPED_STEPS - 1):
        health.check(step, {"gradient_norm": float("inf"), "ratio": float("nan")})
    health.check(9, {"gradient_norm": 1.0})
    with pytest.raises(DivergedError, match="step 29: gradient_norm is inf for 10 steps, none was applied"):
        for step in range(20, 40):
            health.check(step, {"gradient_norm": float("inf")})


def test_console_line() -> None:
    pace = Pace(CONFIG.total_samples, TrainState(), starting_seconds=1.0)
    pace.waiting_for(iter([Batch([0], [0], [""], [""])]), 0)
    pace.stepped()
    metrics = {"toy_loss": 0.25, "gradient_norm": 3.0} | pace.lap(TrainState(20, 5))
    line = pace.line(TrainState(20, 5), metrics)
    assert 0 < metrics["memory_peak_gib"] < 1000 and "GiB" in line
    assert 0 <= metrics["ettr"] < 1 and f"ETTR {metrics['ettr']:.0%}" in line
    assert line.lstrip().startswith("20/40 samples") and "toy_loss 0.25" in line and "gradient_norm" not in line
    assert "unreadable" not in line
    assert "unreadable 3  " in pace.line(TrainState(20, 5), metrics | {"unreadable_samples": 3.0})


def test_effective_time_of_a_start() -> None:
    """As the report counts it: imports, models, data and checkpoint stalls are not productive."""
    pace = Pace(CONFIG.total_samples, TrainState(), starting_seconds=20.0)
    assert pace.ettr(0.0) == 0 and pace.ettr(80.0) == 0.8
    pace.stalled(6.0)
    pace.lap(TrainState(20, 5))  # a new lap forgets its own stall, the start does not
    pace.stalled(4.0)
    assert pace.ettr(80.0) == 0.7
    assert Pace(CONFIG.total_samples, TrainState(), starting_seconds=0.0).ettr(50.0) == 1
    assert process_age_seconds() > 0.05, "this process has imported torch"


def two_ranks(folder: Path) -> dict[str, Any]:
    """Everything that two ranks have to agree on, in one world."""
    process = start()
    _, whole, reference, _ = run(folder / "whole", process, variant="zero2")
    stop = ask_to_stop(4, signal.SIGUSR1) if process.rank == 1 else None  # only one rank is told
    stopped, _, _, _ = run(folder / "cut", process, variant="zero2", at_step=stop)
    _, resumed, _, _ = run(folder / "cut", process, variant="zero2")
    _, moved, _, _ = run(folder / "other", process, variant="zero2", at_step=stop)
    _, moved, _, _ = run(folder / "other", process, variant="zero3")
    results: dict[str, Any] = {
        "stopped": stopped.samples_seen,
        "equal": equal(resumed.state(), whole.state()),
        "words": reference.words,
        "unreadable": reference.unreadable,
        "moved": max(float((moved.state()[k] - v).abs().max()) for k, v in whole.state().items()),
    }

    spoilt = ToyStage(process)
    real = spoilt.train_step
    nan = {"toy_loss": float("nan")} if process.rank == 1 else {}
    spoilt.train_step = lambda *args: {**real(*args), **(nan if args[1] == 3 else {})}  # type: ignore[method-assign]
    journal, store = ToyJournal(folder / f"nan-{process.rank}"), CheckpointStore(folder / "nan", process)
    try:
        fit(spoilt, ToyLoader(process), store, journal, process, CONFIG, folder)
    except DivergedError as error:
        results["diverged"] = f"{error}"
    return results


def test_two_ranks(tmp_path: Path) -> None:
    _, _, alone, _ = run(tmp_path / "alone", Process())
    for results in run_ranks(two_ranks, 2, tmp_path):
        assert results["words"] == alone.words
        assert results["unreadable"] == 1 + 2 and alone.unreadable == 1
        assert results["stopped"] == 20
        assert results["equal"]
        assert results["moved"] <= 1e-6
        assert results["diverged"].startswith("step 4: toy_loss is nan")
