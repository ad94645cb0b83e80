"""The ledger proves exactly-once through stops, crashes and bad samples, and says what is wrong where it is not so."""

import json
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import yaml

from data_tools.__main__ import main
from pipeline.checkpoint.store import CheckpointStore
from pipeline.data.curriculum import PhaseConfig, open_curriculum
from pipeline.data.dataset import DataConfig
from pipeline.data.tar import TarSample
from pipeline.distributed.process import Process
from pipeline.run_folder import RunFolder
from pipeline.tracking.journal import Journal, read_events
from pipeline.trainer import TrainerConfig, fit
from tests.data.small_shards import samples, write_dataset, write_pictures
from tests.runs import ROOT, drawn_shards, kill_after_step, run, start

NUM = 30


class NoStage:
    """Trains nothing; dies at a step."""

    def __init__(self, die_at: int = -1) -> None:
        self.die_at = die_at

    def train_step(self, batch, step, samples_seen, total_samples) -> Mapping[str, float]:
        if step == self.die_at:
            raise ConnectionError("power cut")
        return {"no_loss": 0.0}

    def validate(self, batches):
        return {}

    def preview(self):
        return np.zeros((2, 2, 3), dtype=np.uint8)

    def where_not_finite(self, batch):
        return None

    def parts(self):
        return {}


def train(folder: Path, data: DataConfig, total: int, phases: tuple[PhaseConfig, ...] = (), die_at: int = -1) -> None:
    """One attempt of a run of steps of five samples, saving every 20."""
    folder.mkdir(exist_ok=True)
    config = TrainerConfig(total_samples=total, batch_size=5, checkpoint_every_samples=20)
    tree = {"data": data.model_dump(mode="json"), "trainer": config.model_dump(), "seed": 4}
    (folder / "config.yaml").write_text(
        yaml.safe_dump(tree | {"phases": [phase.model_dump(mode="json") for phase in phases]})
    )
    loader = open_curriculum(phases, data, 5, 4, 0, 1, RunFolder(folder).quarantine)
    store = CheckpointStore(folder / "checkpoints", Process())
    try:
        fit(NoStage(die_at), loader, store, Journal(folder), Process(), config, folder / "samples")  # type: ignore[arg-type]
        store.settle()
    except ConnectionError:
        pass
    finally:
        loader.close()


def verify(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple:
    monkeypatch.setattr(sys, "argv", ["tessera-data", "verify-epoch", str(folder), *words])
    code = main()
    caught = capsys.readouterr()
    return code, (caught.out + caught.err).strip().splitlines()[-1 if code != 1 else 0]


@pytest.fixture
def check(capsys, monkeypatch):
    return lambda folder, *words: verify(folder, capsys, monkeypatch, *words)


def config_of(url: object, **fields: object) -> DataConfig:
    return DataConfig(**{"train": str(url), "image_size": 8, "num_lanes": 4, "block_samples": 4} | fields)


def test_crashes_and_bad_samples_and_what_a_resume_took_back(tmp_path, check):
    content = samples(NUM)
    content[7] = TarSample("00007", content[7].members | {"png": b"broken"})
    write_dataset(str(tmp_path / "shards"), [content[:13], content[13:]])
    data, folder = config_of(tmp_path / "shards", max_bad_fraction=0.1), tmp_path / "run"
    for die_at in (3, 7, 11, -1):
        train(folder, data, 80, die_at=die_at)
    code, line = check(folder)
    facts, _, proof = line.partition(" starts, 1 ranks: ")  # a save may have been under way at the crash
    assert code == 0 and facts in (f"80 samples in 16 steps, {n}" for n in (1, 2, 3))
    assert proof == (
        "2 whole epochs of 30, each sample exactly once in each, no sample out of its place; 3 times a substitute for"
        " an unreadable one"
    )
    assert check(folder, "--ids-only") == (code, line)
    told = [event.body["values"]["unreadable_samples"] for event in read_events(folder) if event.kind == "metrics"]
    assert told[-1] == 1


def test_phases_with_other_batches_and_data(tmp_path, check):
    """Sample 7 of the first phase is another one than sample 7 of the second, and only that is unreadable."""
    content = samples(20)
    content[7] = TarSample("00007", content[7].members | {"png": b"broken"})
    write_dataset(str(tmp_path / "small"), [content])
    write_pictures(str(tmp_path / "large"), [NUM])
    phase = PhaseConfig(until_samples=21, train=str(tmp_path / "small"), image_size=8, batch_size=3)
    folder, data = tmp_path / "run", config_of(tmp_path / "large", max_bad_fraction=0.1)
    for die_at in (9, -1):
        train(folder, data, 101, (phase,), die_at)
    code, line = check(folder)
    assert code == 0 and "1 ranks: 1 whole epochs of 20, 2 whole epochs of 30, each" in line


def test_a_kill_between_a_commit_and_its_word_in_the_journal(tmp_path, check):
    write_pictures(str(tmp_path / "shards"), [NUM])
    train(tmp_path / "run", config_of(tmp_path / "shards"), 60)
    (path,) = (tmp_path / "run/journal").glob("events-*.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    last = max(n for n, line in enumerate(lines) if json.loads(line)["kind"] == "committed")
    path.write_text("".join(lines[:last]))
    code, line = check(tmp_path / "run")
    assert code == 0 and line.startswith("60 samples in 12 steps")
    newest = max((tmp_path / "run/checkpoints").iterdir())
    (newest / "manifest.json").write_text("{")
    code, line = check(tmp_path / "run")
    assert code == 0 and line.startswith("40 samples in 8 steps"), "as a resume would go on"


def alter(folder: Path, change) -> None:
    """Change the pages of the ledger."""
    for path in (folder / "journal").glob("events-*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        kept = [row for row in rows if row["kind"] != "served" or change(row)]
        path.write_text("".join(json.dumps(row) + "\n" for row in kept))


def swap_two_steps(row: dict) -> bool:
    row["words"][0], row["words"][1] = row["words"][1], row["words"][0]
    return True


def other_key(row: dict) -> bool:
    if row["first"] == 20:
        row["words"][1] = row["words"][1][:16] + "0" * 16
    return True


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (swap_two_steps, "samples 0 to 5: served other samples than the plan has there"),
        (other_key, "samples 25 to 30: served the samples of the plan under other keys"),
        (lambda row: row["first"] != 20, "samples 20 to 40: no record of what was served"),
    ],
)
def test_it_says_what_is_wrong(tmp_path, check, change, fault):
    write_pictures(str(tmp_path / "shards"), [NUM])
    train(tmp_path / "run", config_of(tmp_path / "shards"), 60)
    assert check(tmp_path / "run")[0] == 0
    alter(tmp_path / "run", change)
    assert check(tmp_path / "run") == (1, fault)


def test_what_cannot_be_judged_is_refused(tmp_path, check):
    write_pictures(str(tmp_path / "shards"), [NUM])
    train(tmp_path / "run", config_of(tmp_path / "shards"), 60)
    assert "not a run folder" in check(tmp_path)[1]
    write_pictures(str(tmp_path / "shards"), [NUM + 1])
    code, line = check(tmp_path / "run")
    assert code == 2 and "trained on the data" in line
    train(tmp_path / "new", config_of(tmp_path / "shards"), 60, die_at=2)
    assert "no checkpoint yet" in check(tmp_path / "new")[1]
    alter(tmp_path / "run", lambda row: False)


@pytest.mark.slow
def test_real_kills_and_another_number_of_ranks(tmp_path: Path) -> None:
    drawn_shards(tmp_path, 90)
    drawn_shards(tmp_path, 10, "held-out")
    words = ["train", str(ROOT / "configs/autoencoder/debug.yaml"), "run=kills", "data.train=train"]
    words += ["data.validation=held-out", "trainer.checkpoint_every_samples=64", "trainer.log_every_steps=1"]
    many = ["torch.distributed.run", "--nproc-per-node", "2", "-m", "pipeline", *words]
    for kill_at, command in ((6, ["pipeline", *words]), (13, many)):
        process = start(tmp_path, *command, "trainer.total_samples=6400")
        kill_after_step(process, tmp_path / "kills", kill_at)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the ranks that torchrun started
    run(tmp_path, "pipeline", *words, "trainer.total_samples=512")
    output = run(tmp_path, "data_tools", "verify-epoch", "kills")
    assert "512 samples in 32 steps, 3 starts, 1 then 2 then 1 ranks: 5 whole epochs of 90" in output
