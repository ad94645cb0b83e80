"""A run folder: what a run leaves on disk, and the guard that keeps two different runs out of one folder.

    runs/NAME/
      config.yaml      the resolved config; this folder trains again from it
      lineage.json     data, code, parents and versions that the run started from
      autoencoder/     second stage only: the exported first stage that it learns on
      journal/         fsynced events: losses, figures, pictures, commits
      checkpoints/     gen-000123/ generations, each whole and hashed
      samples/         picture grids made through training
      export/          packages made from the newest generation
      quarantine.jsonl samples that did not decode
      heartbeats/      where each rank is; `verdict.json` says why the watchdog ended a run
      lock             held by the process that trains
      report.html      curves, pictures, restarts

Called by `pipeline.experiment` before anything is built.
"""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline import storage
from pipeline.config import Config, UserError, config_differences, dump_config, parse_config

FREE_TO_CHANGE = (
    *("run", "trainer", "engine", "process", "tracking", "optim", "data.num_fetch_threads", "data.num_decode_threads"),
    *("data.prefetch_batches", "data.fetch_ahead_batches", "data.max_bad_fraction"),
    *("stage.unet.compile_blocks", "stage.unet.gradient_checkpointing"),
)
"""What may differ when a run goes on: topology, length, cadences, learning rate, how (not which) data is read, and how
(not what) the UNet computes."""


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def lineage(self) -> Path:
        """What the run started from."""
        return self.path / "lineage.json"

    @property
    def autoencoder(self) -> Path:
        """The first stage that a second stage learns on."""
        return self.path / "autoencoder"

    @property
    def checkpoints(self) -> Path:
        """Generations of the training state."""
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        """Picture grids."""
        return self.path / "samples"

    @property
    def heartbeats(self) -> Path:
        """What the ranks say of themselves while they train."""
        return self.path / "heartbeats"

    @property
    def report(self) -> Path:
        """The page about this run."""
        return self.path / "report.html"

    @property
    def quarantine(self) -> Path:
        """Samples that did not decode."""
        return self.path / "quarantine.jsonl"


@contextmanager
def sole_trainer(run: RunFolder) -> Iterator[None]:
    """Inside the block no other process of this machine may train the run; the kernel ends the claim with the process.

    Raises:
        UserError: another one does.
    """
    run.path.mkdir(parents=True, exist_ok=True)
    with (run.path / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(f"{run.path} is being trained by process {file.read()}: wait for it, or stop it") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def claim(run: RunFolder, config: Config, lineage: Mapping[str, Any], started: bool) -> list[str]:
    """Make the folder, or go on in it; returns what changed since it was made, one line for each setting.

    Args:
        started: the run has a checkpoint; a folder without one holds nothing that another config could spoil.

    Raises:
        UserError: see `changes_since_start`.
    """
    if started and run.config.is_file():
        return changes_since_start(run, config)
    storage.write_json(run.lineage, lineage)
    storage.write_bytes(run.config, dump_config(config).encode())
    return []


def changes_since_start(run: RunFolder, config: Config) -> list[str]:
    """What differs from the config that the run was started with, one line for each setting.

    Raises:
        UserError: the folder holds a run whose data, model or seed differ: named with both values.
    """
    stored = parse_config(yaml.safe_load(run.config.read_text()), type(config), source=str(run.config))
    changes = config_differences(stored.model_dump(mode="json"), config.model_dump(mode="json"))
    free = tuple(f"{name}." for name in FREE_TO_CHANGE)
    fixed = [line for line in changes if not f"{line.partition(':')[0]}.".startswith(free)]
    if fixed:
        raise UserError(f"{run.path} holds another run ({'; '.join(fixed)}): undo the change, or name another run=")
    return changes
