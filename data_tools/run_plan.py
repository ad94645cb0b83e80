"""A run folder seen by its data: the plan of its samples, the samples that it could not read, and their keys.

Called by the proof of `tessera-data verify-epoch`.
"""

import io
import json
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pyarrow import parquet

from data_tools.shard_writer import SUCCESS
from data_tools.tars import headers_of, sample_keys
from pipeline import storage
from pipeline.checkpoint.generation import DamagedError, Generation, committed
from pipeline.config import UserError, parse_config
from pipeline.data.curriculum import PhaseConfig, digest_of_phases
from pipeline.data.dataset import DataConfig, Dataset, make_plan, open_buckets, open_datasets, plan_digest
from pipeline.data.plan import Plan
from pipeline.data.shards import ShardRecord, table_name
from pipeline.run_folder import RunFolder


@dataclass(frozen=True)
class PhasePlan:
    """What one phase of a run has to serve; a run without phases has one."""

    until_samples: float
    """Where the next one begins; infinite for the last."""
    plan: Plan
    datasets: tuple[Dataset, ...]
    digest: str
    """As its loader knows it."""
    unreadable: np.ndarray
    """int64 [n]: ids of its samples in the run's quarantine."""

    @property
    def num_ids(self) -> int:
        """One more than the largest sample id."""
        return self.datasets[-1].first_id + self.datasets[-1].manifest.num_samples

    def substitute(self, epoch: int, place: int) -> int:
        """Id of the first readable sample that stands in for the one at `place`, as the reader finds it."""
        for attempt in count():
            other = self.plan.substitute(epoch, place, attempt)
            sample_id = int(self.plan.sample_ids(np.array([other]))[0])
            if sample_id not in self.unreadable:
                return sample_id
        raise AssertionError("count() has no end")


@dataclass(frozen=True)
class RunPlan:
    """What a run has to serve."""

    folder: Path
    phases: tuple[PhasePlan, ...]
    samples_seen: int
    """In its newest checkpoint; what came after it is not settled."""
    chain: str
    """Chain of words in that checkpoint; empty when it has none."""

    def phase_at(self, samples_seen: int) -> int:
        """Number of the phase that the step which begins there belongs to."""
        return next(n for n, phase in enumerate(self.phases) if samples_seen < phase.until_samples)


def open_run(folder: Path) -> RunPlan:
    """The plan of a run as its folder describes it.

    Raises:
        UserError: no run folder, a run of another kind of data, or data that is gone or has changed since.
    """
    run = RunFolder(folder)
    if not run.config.is_file():
        raise UserError(f"{folder}: not a run folder, it has no config.yaml")
    progress = _newest_progress(run)
    phases = tuple(_phases(yaml.safe_load(run.config.read_text()), str(run.config), _quarantined(run)))
    digest = digest_of_phases([phase.digest for phase in phases])
    if digest != progress["data"]:
        raise UserError(f"{folder}: trained on the data {progress['data'][:12]}, there is {digest[:12]} now")
    return RunPlan(folder, phases, progress["samples_seen"], progress.get("served", ""))


def keys_of(phase: PhasePlan) -> Iterator[tuple[int, list[str]]]:
    """(id of the first sample, keys of all) of each shard: from its table, else from the headers of its tar.

    Raises:
        UserError: a shard that holds another number of samples than the manifest says.
    """
    for dataset in phase.datasets:
        first = dataset.first_id
        for record in dataset.manifest.shards:
            keys = _keys_of_shard(dataset.url, record)
            if len(keys) != record.num_samples:
                raise UserError(f"{record.name}: {len(keys)} samples, the manifest says {record.num_samples}")
            yield first, keys
            first += record.num_samples


def _newest_progress(run: RunFolder) -> dict[str, Any]:
    """Of the newest generation whose manifest is whole."""
    for path in committed(run.checkpoints):
        with suppress(DamagedError):
            return Generation.open(path).progress
    raise UserError(f"{run.path}: no checkpoint yet, so nothing of it is settled")


def _phases(tree: dict[str, Any], source: str, quarantined: list[dict[str, Any]]) -> Iterator[PhasePlan]:
    """The phases of a resolved config."""
    last = parse_config(tree["data"], DataConfig, source)
    if last.order == "stream":
        raise UserError(f"{source}: data.order is stream, which has no epochs")
    for row in tree.get("phases") or []:
        phase = parse_config(row, PhaseConfig, source)
        yield _phase(phase.until_samples, phase.data(last), phase.batch_size, tree["seed"], quarantined)
    yield _phase(math.inf, last, tree["trainer"]["batch_size"], tree["seed"], quarantined)


def _phase(
    until_samples: float, config: DataConfig, batch_size: int, seed: int, quarantined: list[dict[str, Any]]
) -> PhasePlan:
    datasets = open_datasets(config.train, config.block_samples)
    buckets = open_buckets(datasets, config)
    plan = make_plan(datasets, buckets, config, seed, batch_size)
    digest = plan_digest(datasets, buckets, config, batch_size)
    unreadable = np.unique(
        np.array([row["sample_id"] for row in quarantined if row.get("data", digest) == digest], dtype=np.int64)
    )
    return PhasePlan(until_samples, plan, datasets, digest, unreadable)


def _keys_of_shard(url: str, record: ShardRecord) -> list[str]:
    table = storage.join(url, table_name(record.name))
    if storage.exists(table):
        columns = parquet.read_table(io.BytesIO(storage.read_bytes(table)), columns=["key", "status"]).to_pydict()
        return [key for key, status in zip(columns["key"], columns["status"], strict=True) if status == SUCCESS]
    with headers_of(storage.join(url, record.name)) as buffer:
        return sample_keys(buffer)


def _quarantined(run: RunFolder) -> list[dict[str, Any]]:
    """The samples that some rank could not read, in any attempt."""
    lines = run.quarantine.read_text().splitlines() if run.quarantine.is_file() else []
    return [json.loads(line) for line in lines]
