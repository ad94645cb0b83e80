"""What the run folder gets of the code: the tracked files as they are on disk, whole, and nothing else."""

import subprocess
from pathlib import Path

import pytest

from launch.snapshot import copy_code


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    (folder / "pipeline").mkdir(parents=True)
    (folder / "pipeline/a.py").write_text("a = 1")
    (folder / "pipeline/b.py").write_text("b = 1")
    (folder / ".gitignore").write_text("ignored.py")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    return folder


def test_tracked_files_are_copied_as_they_are_on_disk(checkout: Path, tmp_path: Path) -> None:
    (checkout / "pipeline/a.py").write_text("a = 2")
    (checkout / "pipeline/new.py").write_text("new = 1")
    (checkout / "ignored.py").write_text("")
    snapshot = copy_code(tmp_path / "run/code", checkout)
    assert contents(tmp_path / "run/code") == {
        ".gitignore": "ignored.py",
        "pipeline/a.py": "a = 2",
        "pipeline/b.py": "b = 1",
    }
    assert snapshot.commit == git(checkout, "rev-parse", "HEAD")
    assert (snapshot.modified, snapshot.untracked) == (["pipeline/a.py"], ["pipeline/new.py"])


def test_a_second_copy_replaces_the_first(checkout: Path, tmp_path: Path) -> None:
    first = copy_code(tmp_path / "code", checkout)
    assert copy_code(tmp_path / "code", checkout).digest == first.digest
    (checkout / "pipeline/b.py").unlink()
    assert copy_code(tmp_path / "code", checkout).digest != first.digest
    assert sorted(contents(tmp_path / "code")) == [".gitignore", "pipeline/a.py"]


def test_without_git_the_packages_are_copied(tmp_path: Path) -> None:
    for name in ("pipeline/a.py", "pipeline/__pycache__/a.pyc", "other/b.py"):
        (tmp_path / "site" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "site" / name).write_text("")
    snapshot = copy_code(tmp_path / "code", tmp_path / "site")
    assert (snapshot.commit, snapshot.modified, snapshot.untracked) == (None, [], [])
    assert list(contents(tmp_path / "code")) == ["pipeline/a.py"]
