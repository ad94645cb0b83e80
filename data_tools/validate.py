"""Every byte of a dataset against its manifest, every sample against what training needs, keys against each other.

Called by `tessera-data validate`.
"""

import numpy as np

from data_tools.check_shard import CheckTask, Fault, ShardCheck, check_shard
from data_tools.pool import map_unordered
from data_tools.tars import headers_of, sample_keys
from pipeline import storage
from pipeline.data.shards import load_manifest
from pipeline.data.tar import TarError


def validate_dataset(url: str, num_workers: int) -> list[ShardCheck]:
    """Check all shards of the dataset `url`, in the order of the manifest.

    Raises:
        UserError: no manifest.
    """
    manifest = load_manifest(url)
    tasks = [CheckTask(url, record, manifest.kind) for record in manifest.shards]
    found = map_unordered(check_shard, tasks, len(tasks), num_workers, f"checking {url}")
    checks = {check.name: check for check in found}
    ordered = [checks[record.name] for record in manifest.shards]
    _find_repeated_keys(url, ordered)
    _find_other_members(ordered)
    return ordered


def _find_repeated_keys(url: str, checks: list[ShardCheck]) -> None:
    """Note in each shard the samples whose key came already, in this shard or one before it."""
    seen = np.empty(0, np.uint64)
    for check in checks:
        own, first = np.unique(check.key_hashes, return_index=True)
        repeated = np.isin(check.key_hashes, seen)
        repeated |= ~np.isin(np.arange(len(repeated)), first)
        if repeated.any():
            try:
                with headers_of(storage.join(url, check.name)) as headers:
                    keys = sample_keys(headers)
            except TarError:
                keys = []  # the break is told already
            places = [place for place in np.flatnonzero(repeated).tolist() if place < len(keys)]
            reason = "a key that came before; keys must be unique in a dataset"
            check.faults += [Fault("sample", reason, keys[place], place) for place in places]
        seen = np.union1d(seen, own)


def _find_other_members(checks: list[ShardCheck]) -> None:
    """Note the shards whose samples have other members than those of the first shard."""
    wanted = next((check.extensions for check in checks if check.extensions), ())
    for check in checks:
        if check.extensions and check.extensions != wanted:
            found, first = ", ".join(check.extensions), ", ".join(wanted)
            check.faults.append(Fault("tar", f"samples of {found}, the first shard has {first}"))
