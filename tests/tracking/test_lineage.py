"""The record knows which code ran: of a checkout, of a launcher's copy, and nothing of somebody else's checkout."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from pipeline.data import members
from pipeline.data.dataset import DataConfig
from pipeline.data.selection import Selection
from pipeline.data.shards import Manifest, ShardRecord
from pipeline.experiment import _data_record
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


def test_a_selection_makes_other_data(tmp_path: Path) -> None:
    """A model that was trained on chosen samples is another model: the record names the manifest and the choice."""
    images = Manifest("images", (ShardRecord("00000.tar", 10, 100, "1" * 64),))
    for name in ("train", "held-out"):
        (tmp_path / name).mkdir()
        images.save(str(tmp_path / name))
    data = DataConfig(train=str(tmp_path / "train"), validation=str(tmp_path / "held-out"))
    whole = {"data_digest": images.digest, "validation_digest": images.digest, "validation_url": data.validation}
    nothing = {"selection_digest": None, "validation_selection_digest": None}
    assert _data_record(data) == whole | nothing
    selection = Selection(images.digest, 10, members.pack(np.arange(10) % 2 == 0), {"odd": 5})
    selection.save(data.train)
    assert _data_record(data) == whole | nothing | {"selection_digest": selection.digest}
    selection.save(str(data.validation))
    assert _data_record(data)["validation_selection_digest"] == selection.digest


def test_versions() -> None:
    assert {"python", "torch", "numpy"} <= set(versions())
