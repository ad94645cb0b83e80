"""What the registry knows about one version of a model without a download: its number, aliases and tags.

Made and read by `registry`; shown by `tessera registry`, judged by `promotion`.
"""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.checkpoint.package import EVALUATION, Package
from pipeline.config import UserError

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

LOG_SUFFIX = ".promotions"
"""Ends the name of the log that `promotion` keeps for a model; such names are not models."""

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"
DIGEST_TAG, KIND_TAG, EVALUATION_TAG = "package_digest", "kind", "evaluation"
FILES_TAG = "files_digest"
VERDICTS_TAG, APPROVAL_TAG = "gates", "approved_by"
LINEAGE_TAGS = (
    "run",
    "data_digest",
    "selection_digest",
    "latents_digest",
    "autoencoder_digest",
    "autoencoder_ref",
    "config_digest",
    "git_commit",
    "world_size",
    "samples_seen",
)
"""Fields of the lineage that can be searched for as tags."""

TAG_CHARACTERS = 8000
"""MLflow's limit."""


@dataclass(frozen=True)
class Version:
    """One version of a registered model."""

    name: str
    """Name of the registered model."""
    number: int
    """1, 2, 3, ..."""
    aliases: tuple[str, ...]
    """What it is for, such as champion."""
    tags: dict[str, str]
    """Digests, lineage, evaluation."""
    source: str
    """Address of its files."""
    run_id: str
    """The MLflow run that holds them."""
    created_ms: int
    """When it was registered, milliseconds since 1970."""

    @property
    def ref(self) -> str:
        """How every command calls it."""
        return f"models:/{self.name}/{self.number}"

    @property
    def digest(self) -> str:
        """Digest of the package; empty for a version that Tessera did not register."""
        return self.tags.get(DIGEST_TAG, "")

    @property
    def files_digest(self) -> str:
        """Digest of the list of all its files' digests; empty for a version from before there was one."""
        return self.tags.get(FILES_TAG, "")

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """What `tessera evaluate` found, with the protocol."""
        return json.loads(self.tags[EVALUATION_TAG]) if EVALUATION_TAG in self.tags else None


def tags_of(package: Package) -> dict[str, str]:
    """What can be searched for and shown without a download."""
    lineage = {name: package.lineage.get(name) for name in LINEAGE_TAGS}
    tags = {DIGEST_TAG: package.digest, KIND_TAG: package.kind, "lineage": json.dumps(package.lineage)}
    tags |= {name: str(value)[:TAG_CHARACTERS] for name, value in lineage.items() if value is not None}
    return tags | evaluation_tags(package)


def evaluation_tags(package: Package) -> dict[str, str]:
    """The whole evaluation.json, for the gates, and each metric, for searches."""
    evaluation = package.evaluation
    if evaluation is None:
        return {}
    text = json.dumps(evaluation, sort_keys=True)
    if len(text) > TAG_CHARACTERS:
        raise UserError(f"{package.folder / EVALUATION}: more than {TAG_CHARACTERS} characters of figures")
    return {EVALUATION_TAG: text} | {f"metric.{name}": repr(value) for name, value in evaluation["metrics"].items()}


def version_of(found: "ModelVersion", aliases: dict[str, int]) -> Version:
    """A row of the registry, with those of the model's `aliases` that point to it."""
    number = int(found.version)
    mine = tuple(sorted(alias for alias, target in aliases.items() if target == number))
    source, run_id = found.source or "", found.run_id or ""
    return Version(found.name, number, mine, dict(found.tags), source, run_id, found.creation_timestamp)
