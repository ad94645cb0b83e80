"""The doors from the command line: checks come first, a dry run leaves nothing, a launch leaves a whole job."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from launch import __main__ as program
from launch import follow
from launch.job import render_template

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


def test_kubernetes_manifest(config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("kubernetes", config, "--nodes", "4", "--nproc", "2", "--image", "tessera:1", "--claim", "runs")
    assert launch(monkeypatch, *words) == 2
    assert "is not below --mount /runs" in capsys.readouterr().err
    assert launch(monkeypatch, *words, "--mount", config.parent) == 0
    settings, job = yaml.safe_load_all(capsys.readouterr().out)
    assert yaml.safe_load(settings["data"]["config.yaml"])["trainer"]["batch_size"] == 8
    roles = job["spec"]["pytorchReplicaSpecs"]
    assert {role: spec["replicas"] for role, spec in roles.items()} == {"Master": 1, "Worker": 3}
    assert job["spec"]["nprocPerNode"] == "2"
    pod = roles["Worker"]["template"]["spec"]
    container = pod["containers"][0]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 2, "cpu": 64, "memory": "256Gi"}
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert container["command"][-3:] == ["pipeline", "train", "/config/config.yaml"]


ARRAY = ("array", "--parts", "4", "--folder", "out/web", "--at-once", "2")


def test_array_of_a_data_tool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert launch(monkeypatch, *ARRAY, "--dry-run", "--", "shard", "a b.csv", "--out", "shards") == 0
    script = capsys.readouterr().out
    assert "#SBATCH --array=0-3%2\n" in script and "-m data_tools shard 'a b.csv' --out shards" in script
    assert '--shard-range "$SLURM_ARRAY_TASK_ID/4" --num-workers "$SLURM_CPUS_PER_TASK"\n' in script
    assert (
        launch(monkeypatch, *ARRAY, "--dry-run", "--", "precompute", "--model", "m", "--data", "d", "--out", "o") == 0
    )
    assert 'export RANK="$SLURM_ARRAY_TASK_ID" WORLD_SIZE=4 OMP' in (script := capsys.readouterr().out)
    assert "-m data_tools precompute --model m --data d --out o\n" in script
    assert not list(tmp_path.iterdir())
    assert launch(monkeypatch, *ARRAY, "--", "report", "shards") == 2
    assert "after -- give shard or precompute with its arguments" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tool", "starts", "again"), [("exit 0", 0, False), ("exit 1", 0, True), ("exit 1", 2, False), ("exit 2", 0, False)]
)
def test_a_part_that_fails_is_queued_again(tool: str, starts: int, again: bool, tmp_path: Path) -> None:
    for name, body in (("python", f'echo "$*" > {tmp_path}/called; {tool}'), ("scontrol", f"touch {tmp_path}/again")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    values = {"name": "web", "parts": 4, "at_once": None, "cpus": 3, "folder": tmp_path, "options": []}
    words = 'shard in --out shards --shard-range "$SLURM_ARRAY_TASK_ID/4" --num-workers "$SLURM_CPUS_PER_TASK"'
    script = render_template("array.sbatch", **values, variables="OMP_NUM_THREADS=1", words=words)
    script = script.replace(sys.executable, str(tmp_path / "python"))
    slurm = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_CPUS_PER_TASK": "3", "SLURM_JOB_ID": "7"}
    slurm["SLURM_RESTART_COUNT"] = str(starts)
    environment = {**os.environ, **slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash"], input=script, text=True, env=environment, check=False)
    assert done.returncode == int(tool.split()[1]) and (tmp_path / "again").exists() == again
    assert (tmp_path / "called").read_text().endswith("shard in --out shards --shard-range 3/4 --num-workers 3\n")


def test_following_shows_every_start_until_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log, states = tmp_path / "slurm-7.out", iter(["PENDING", "RUNNING", None, None, "REQUEUED", "RUNNING", "COMPLETED"])

    def state_of(number: str) -> str | None:
        state = next(states)
        if state not in (None, "PENDING"):
            with log.open("a") as file:
                file.write(f"{state}\n")
        return state

    monkeypatch.setattr(follow, "state_of", state_of)
    assert follow.follow("7", log, poll_seconds=0) == 0
    assert capsys.readouterr().out.split() == ["RUNNING", "REQUEUED", "RUNNING", "COMPLETED"]
    monkeypatch.setattr(follow, "state_of", lambda number: None)
    assert follow.follow("7", log, poll_seconds=0) == 1
