"""A run folder takes the same run again and refuses another one, naming what differs."""

import os
from pathlib import Path

import pytest

from pipeline.config import Config, UserError
from pipeline.run_folder import RunFolder, claim, sole_trainer


class Trainer(Config):
    total_samples: int = 100


class Stage(Config):
    channels: int = 8


class Data(Config):
    num_lanes: int = 8
    num_decode_threads: int = 2


class Experiment(Config):
    run: str = "runs/a"
    seed: int = 0
    runner: str = "a setting whose name begins like a free one"
    stage: Stage = Stage()
    data: Data = Data()
    trainer: Trainer = Trainer()


def test_the_same_config_goes_on_and_the_first_lineage_stays(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    assert claim(run, Experiment(), {"world_size": 1}, started=True) == []
    assert claim(run, Experiment(), {"world_size": 2}, started=True) == []
    assert '"world_size": 1' in run.lineage.read_text()


def test_how_data_is_read_may_change_and_which_is_read_may_not(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    claim(run, Experiment(), {}, started=True)
    assert claim(run, Experiment(data=Data(num_decode_threads=4)), {}, started=True)
    with pytest.raises(UserError, match=r"data\.num_lanes: 8 -> 9"):
        claim(run, Experiment(data=Data(num_lanes=9)), {}, started=True)


def test_length_and_topology_may_change_and_the_change_is_told(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    claim(run, Experiment(), {}, started=True)
    changes = claim(run, Experiment(trainer=Trainer(total_samples=200)), {}, started=True)
    assert changes == ["trainer.total_samples: 100 -> 200"]


@pytest.mark.parametrize(
    ("other", "line"),
    [
        (Experiment(seed=1), "seed: 0 -> 1"),
        (Experiment(stage=Stage(channels=9)), "stage.channels: 8 -> 9"),
        (Experiment(runner="b"), "runner: "),
    ],
)
def test_another_run_is_refused_by_name_and_values(tmp_path: Path, other: Experiment, line: str) -> None:
    run = RunFolder(tmp_path / "run")
    claim(run, Experiment(), {}, started=True)
    before = run.config.read_text()
    with pytest.raises(UserError) as caught:
        claim(run, other, {}, started=True)
    assert line in str(caught.value) and "name another run=" in str(caught.value)
    assert run.config.read_text() == before


def test_a_run_without_a_checkpoint_may_be_corrected(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    claim(run, Experiment(seed=1), {}, started=False)
    assert claim(run, Experiment(seed=2), {}, started=False) == []
    assert "seed: 2" in run.config.read_text()


def test_one_trainer_at_a_time(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    told = f"is being trained by process {os.getpid()}"
    with sole_trainer(run), pytest.raises(UserError, match=told), sole_trainer(run):
        pass
    with sole_trainer(run):
        pass
