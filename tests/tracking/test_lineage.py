"""The record knows which code ran: of a checkout, of a launcher's copy, and nothing of somebody else's checkout."""

import json
import subprocess
from pathlib import Path

import pytest

from pipeline.tracking.lineage import Lineage, git_state, versions


def git(folder: Path, *words: str) -> str:
    names = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    return subprocess.check_output(["git", "-C", str(folder), *names, *words], text=True).strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "a.py").write_text("1")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def test_checkout(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    assert git_state(checkout / "pipeline") == (commit, False)
    (checkout / "notes.txt").write_text("not tracked")
    assert git_state(checkout / "pipeline") == (commit, False)
    (checkout / "pipeline" / "a.py").write_text("2")
    assert git_state(checkout / "pipeline") == (commit, True)


def test_installed_below_another_checkout(checkout: Path) -> None:
    (checkout / "env" / "site-packages" / "pipeline").mkdir(parents=True)
    assert git_state(checkout / "env" / "site-packages" / "pipeline") == (None, False)


@pytest.mark.parametrize("modified", [[], ["pipeline/a.py"]])
def test_a_launchers_copy_inside_a_checkout(checkout: Path, modified: list[str]) -> None:
    run = checkout / "runs" / "toy"
    (run / "code" / "pipeline").mkdir(parents=True)
    (run / "launch").mkdir()
    (run / "launch" / "snapshot.json").write_text(json.dumps({"commit": "abc", "modified": modified}))
    assert git_state(run / "code" / "pipeline") == ("abc", bool(modified))


def test_gaps() -> None:
    whole = Lineage(run="x", stage="autoencoder", data_url="u", data_digest="d", config_digest="c", git_commit="g")
    assert whole.gaps() == ["samples_seen"]
    assert whole.model_copy(update={"samples_seen": 8}).gaps() == []
    assert whole.model_copy(update={"samples_seen": 8, "stage": "diffusion"}).gaps() == ["autoencoder_digest"]


def test_versions() -> None:
    assert {"python", "torch", "numpy"} <= set(versions())
