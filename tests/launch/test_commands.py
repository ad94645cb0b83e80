"""The three doors from the command line: checks come first, a dry run leaves nothing, a launch leaves a whole job."""

import json
import os
from pathlib import Path

import pytest
import yaml

from launch import __main__ as program

MINIMAL = """
run: {run}
data: {{train: {run}/shards, validation: {run}/held-out, image_size: 32}}
stage: {{kind: autoencoder, reconstruction: {{perceptual_weight: 0}}}}
optim: {{learning_rate: 1.0e-3}}
trainer: {{total_samples: 64, batch_size: 8, checkpoint_every_samples: 64}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(MINIMAL.format(run=tmp_path / "run"))
    return path


def launch(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> int:
    monkeypatch.setattr("sys.argv", ["tessera-launch", *map(str, words)])
    return program.main()


@pytest.mark.parametrize(
    "words",
    [
        ["local"],
        ["torchrun", "--nproc", "2"],
        ["torchrun", "--nproc", "2", "--nodes", "2", "--head", "n1"],
        ["slurm", "--nproc", "2", "--nodes", "2", "--time", "1:00:00", "--sbatch=--partition=long"],
    ],
)
def test_dry_run_prints_the_script_and_writes_nothing(
    words: list[str], config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch(monkeypatch, words[0], config, *words[1:], "--dry-run") == 0
    assert capsys.readouterr().out.startswith("#!/usr/bin/env bash\n")
    assert not (config.parent / "run").exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["local", "trainer.batch_sise=8"], "did you mean batch_size"),
        (["torchrun", "--nproc", "3"], "take 6 or 9"),
        (["torchrun", "--nproc", "16"], "take 16"),
        (["torchrun", "--nproc", "2", "--nodes", "2"], "--head HOST"),
        (["slurm", "--nproc", "2", "--nodes", "1", "--time", "1:00:00", "--sbatch=--wrap=a b"], "without spaces"),
    ],
)
def test_wrong_use_is_refused_before_anything_is_written(
    words: list[str],
    complaint: str,
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert launch(monkeypatch, words[0], config, *words[1:]) == 2
    assert complaint in capsys.readouterr().err
    assert not (config.parent / "run").exists()


def test_a_launch_leaves_code_config_and_script(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("torchrun", config, "--nproc", "2", "--nodes", "2", "--head", "n1", "trainer.batch_size=16")
    assert launch(monkeypatch, *words) == 0
    run = config.parent / "run"
    assert f"bash {run}/launch/torchrun.sh" in capsys.readouterr().out
    assert os.access(run / "launch/torchrun.sh", os.X_OK)
    assert yaml.safe_load((run / "launch/config.yaml").read_text())["trainer"]["batch_size"] == 16
    assert (run / "code/pipeline/config.py").is_file()
    assert set(json.loads((run / "launch/snapshot.json").read_text())) == {"commit", "modified", "untracked", "digest"}
