"""A copy of the code in the run folder, so that a run that starts again tomorrow runs what was launched today.

Called by `launch.job` on every launch; a launch after an edit takes the edit along.
"""

import hashlib
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "data_tools", "launch")


@dataclass(frozen=True)
class Snapshot:
    """What was copied."""

    commit: str | None
    """Git commit of the checkout; None where there is no git history."""
    modified: list[str]
    """Tracked files that differ from the commit; the copy holds them as they are now."""
    untracked: list[str]
    """Files that git neither tracks nor ignores: they are left behind."""
    digest: str
    """sha256 over the paths and contents of all copied files."""


def copy_code(target: Path, checkout: Path = CHECKOUT) -> Snapshot:
    """Replace `target` with the tracked files of `checkout` as they are on disk now.

    A process that runs from an older copy keeps the files that it has open; the new copy appears whole.
    """
    files = tracked_files(checkout)
    partial, old = target.with_name(f"{target.name}.partial"), target.with_name(f"{target.name}.old")
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    digest = hashlib.sha256()
    for name in files:
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(checkout / name, partial / name)
        digest.update(name.encode() + b"\0" + hashlib.sha256((partial / name).read_bytes()).digest())
    if target.exists():
        target.rename(old)  # a run that imports from it just now misses it for an instant, not for a whole removal
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    return Snapshot(
        commit="".join(_git(checkout, "rev-parse", "--verify", "HEAD")).strip() or None,
        modified=_git(checkout, "diff", "HEAD", "--name-only", "-z"),
        untracked=_git(checkout, "ls-files", "--others", "--exclude-standard", "-z"),
        digest=digest.hexdigest(),
    )


def tracked_files(checkout: Path) -> list[str]:
    """Relative paths that make up the code, sorted: what git tracks, or the packages where there is no git."""
    listed = _git(checkout, "ls-files", "-z")
    if not listed:
        found = (path for package in PACKAGES for path in (checkout / package).rglob("*"))
        listed = [str(path.relative_to(checkout)) for path in found if "__pycache__" not in path.parts]
    return sorted(name for name in listed if (checkout / name).is_file())


def _git(checkout: Path, *words: str) -> list[str]:
    """The NUL-separated answer of git; empty when this is no repository of its own, or git is missing."""
    if not (checkout / ".git").exists():
        return []
    try:
        answer = subprocess.run(["git", "-C", str(checkout), *words], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return [name for name in answer.stdout.split("\0") if name]
