"""Where a model came from: the record that starts with the run and ends as tags of a registry version.

`tessera train` writes it to RUN/lineage.json, the export completes it with how far training had come, and the
registry refuses to promote a version whose record has gaps.
"""

import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Literal

from pipeline.config import Config

PACKAGES = ("torch", "deepspeed", "accelerate", "mlflow", "open_clip_torch", "webdataset", "numpy")
"""What can change a result."""


class Lineage(Config):
    """All digests are sha256 in hex."""

    run: str
    """Name of the run."""
    stage: Literal["autoencoder", "diffusion"]
    """What was trained."""
    data_url: str
    """Shards that were trained on."""
    data_digest: str
    """Digest of their manifest; with precomputed latents, that of the images that they were made from."""
    selection_digest: str | None = None
    """Digest of the samples that were chosen of them (`tessera-data mask`); none where all counted."""
    validation_url: str | None = None
    """Shards that were validated on."""
    validation_digest: str | None = None
    """Digest of their manifest."""
    validation_selection_digest: str | None = None
    """Digest of the samples that were chosen of them."""
    latents_digest: str | None = None
    """Digest of the manifest of precomputed latents, when they were trained on."""
    earlier_data_digests: tuple[str, ...] = ()
    """As `data_digest`, or `selection_digest` where there is one, of the phases before the last."""
    autoencoder_digest: str | None = None
    """Digest of the first stage's package; a diffusion stage always has one."""
    autoencoder_ref: str | None = None
    """How the user named the first stage, such as models:/vq-autoencoder/3."""
    config_digest: str
    """Digest of the resolved config."""
    git_commit: str | None = None
    """Commit of the code; none outside a git checkout."""
    git_dirty: bool = False
    """True when the code had changes that no commit holds."""
    world_size: int = 1
    """Ranks of the first attempt."""
    versions: dict[str, str] = {}
    """Python and the packages that can change a result."""
    samples_seen: int = 0
    """Samples that the exported weights have seen."""
    generation: int | None = None
    """Checkpoint generation that the weights were taken from."""
    checkpoint_digest: str | None = None
    """Digest of that generation's manifest."""
    weights: str | None = None
    """Which weights were exported: as trained, or which average of them."""
    run_uid: str | None = None
    """Identity of the run in its journal, and a tag of its MLflow run."""

    def gaps(self) -> list[str]:
        """What a record must have before its model may go live, and this one has not."""
        needed = ["data_digest", "config_digest", "git_commit", "world_size", "samples_seen"]
        needed += ["autoencoder_digest"] if self.stage == "diffusion" else []
        return [name for name in needed if not getattr(self, name)] + (["git_dirty"] if self.git_dirty else [])


def git_state(package: Path | str) -> tuple[str | None, bool]:
    """(commit, whether tracked files differ from it) of the code in the folder `package`; (None, False) if unknown.

    Code that a launcher copied into a run folder is what its snapshot.json says, whatever checkout the folder is in.
    """
    root = Path(package).absolute().parent
    snapshot = root.parent / "launch" / "snapshot.json"
    if root.name == "code" and snapshot.is_file():
        content = json.loads(snapshot.read_text())
        return content["commit"], bool(content["modified"])
    if not (root / ".git").exists():  # installed: the checkout around an environment is another project's
        return None, False
    try:
        return _git(root, "rev-parse", "HEAD"), bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None, False


def _git(root: Path, *words: str) -> str:
    command = ["git", "-C", str(root), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def versions() -> dict[str, str]:
    """Versions of Python and of the installed ones of `PACKAGES`."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
