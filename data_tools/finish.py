"""The end of a sharding: when every shard is done, whoever did it, the manifest that names them. Called by `shard`."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from data_tools.sidecars import write_sidecars
from data_tools.table import SUCCESS
from pipeline import storage
from pipeline.config import UserError
from pipeline.data.shards import Manifest, ShardRecord, shard_name


def finish_dataset(
    out: str, plan: Mapping[str, Any], done: Mapping[str, Mapping[str, Any]], num_shards: int
) -> dict[str, Any]:
    """Write the manifest if all shards are done; the sum of the stats `done`, with `digest` None if some are not.

    Raises:
        UserError: all is done, and not one sample could be read.
    """
    stats = [done[name] for name in map(shard_name, range(num_shards)) if name in done]
    failures = sum((Counter(row["status_dict"]) for row in stats), Counter[str]())
    num_samples = failures.pop(SUCCESS, 0)
    records = tuple(ShardRecord(**row["shard"]) for row in stats if row["shard"]["num_samples"])
    missing = num_shards - len(stats)
    if not num_samples and not missing:
        raise UserError(f"{out}: not one of {plan['input']['pairs']} pictures could be read: {min(failures)}")
    manifest = Manifest("images", records, hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest())
    if not missing:
        _remove_torn_files(out)
        write_sidecars(out, manifest, (plan["config"]["format"], "json", "txt"))
        manifest.save(out)
    return {
        "shards": len(records),
        "missing": missing,
        "samples": num_samples,
        "failed": sum(failures.values()),
        "failures": dict(failures.most_common()),
        "without_caption": sum(row["without_caption"] for row in stats),
        "bytes": manifest.num_bytes,
        "digest": None if missing else manifest.digest,
    }


def _remove_torn_files(out: str) -> None:
    """Remove what killed runs were writing into a local folder; now that all shards are there, nobody writes."""
    if storage.is_local(out):
        for path in storage.local_path(out).glob(".*.partial"):
            path.unlink()
