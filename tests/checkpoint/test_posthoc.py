"""Snapshots stay on disk, and an average of another width comes out of them near the one that was run directly."""

from pathlib import Path

import pytest

from pipeline.checkpoint.generation import Generation, committed
from pipeline.checkpoint.posthoc import rebuilt_average
from pipeline.checkpoint.store import CheckpointStore
from pipeline.config import UserError
from pipeline.distributed import process as processes
from pipeline.distributed.ema import Ema, EmaConfig
from pipeline.distributed.process import Process
from tests.checkpoint.saving import save_now
from tests.distributed.toys import make_engine, train_engine

WIDTHS = (0.05, 0.1)


def test_a_width_that_was_never_run_is_rebuilt(tmp_path: Path) -> None:
    process = processes.start()
    try:
        engine = make_engine("accelerate", process)
        start = [master.clone() for master in Ema(engine, EmaConfig()).masters]
        tracks = {f"ema_{width}": Ema(engine, EmaConfig(), width) for width in WIDTHS}
        direct = Ema(engine, EmaConfig(), 0.07)
        store = CheckpointStore(tmp_path, process, keep=1, keep_every_samples=20)
        for step in range(160):
            train_engine(engine, range(step, step + 1), process)
            for average in (*tracks.values(), direct):
                average.update()
            if (step + 1) % 20 == 0:
                save_now(store, {"samples_seen": step + 1}, {"net": engine, **tracks})
    finally:
        processes.finish()
    assert len(committed(tmp_path)) == 8
    rebuilt = rebuilt_average(tmp_path, Generation.open(committed(tmp_path)[0]), 0.07)
    pairs = zip(engine.pieces, direct.averages, direct.masters, start, strict=True)
    for piece, wanted, latest, first in pairs:
        error = (rebuilt[piece.name].flatten() - wanted.flatten()).norm()
        assert error < 0.1 * (latest - wanted).norm() + 1e-6
        assert error < 0.01 * (latest - first).norm() + 1e-6
    with pytest.raises(UserError, match="ema-width"):
        rebuilt_average(tmp_path, Generation.open(committed(tmp_path)[0]), 0.5)


def test_a_run_without_tracks_says_what_is_missing(tmp_path: Path) -> None:
    process = processes.start()
    try:
        engine = make_engine("accelerate", process)
        parts = {"net": engine, "ema": Ema(engine, EmaConfig())}
        save_now(CheckpointStore(tmp_path, Process()), {"samples_seen": 1}, parts)
    finally:
        processes.finish()
    with pytest.raises(UserError, match="power_widths"):
        rebuilt_average(tmp_path, Generation.open(committed(tmp_path)[0]), 0.1)
