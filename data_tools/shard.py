"""Pairs -> shards: plan what goes into which shard, let worker processes write them, name them all in a manifest.

A shard with a stats file is done: the same command again writes only what is missing, and a command with other inputs
or settings on the same folder is refused. Called by `tessera-data shard`.
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from data_tools.pixels import ResizeMode
from data_tools.pool import map_unordered
from data_tools.shard_writer import OWN_COLUMNS, SUCCESS, ShardTask, make_shard
from data_tools.sources import Pair, open_source
from pipeline import storage
from pipeline.config import Config, UserError, config_differences
from pipeline.data.shards import MANIFEST_NAME, Manifest, ShardRecord, shard_name

SHARD_NAME = re.compile(r"\d{5,}\.tar")


class ShardConfig(Config):
    """What becomes of the pictures, and in which order they come."""

    size: int | None = Field(None, gt=0)
    """Side in pixels: of the square for center_crop, of the shorter side for keep_ratio."""
    resize: ResizeMode = "center_crop"
    """center_crop, keep_ratio or none."""
    samples_per_shard: int = Field(1000, gt=0)
    """Input rows of a shard; those that fail leave a gap."""
    shuffle_seed: int = Field(0, ge=0)
    """The pairs are mixed over all shards once, so that a shard is no single folder."""

    @model_validator(mode="after")
    def _size_fits_resize(self) -> "ShardConfig":
        if (self.size is None) != (self.resize == "none"):
            raise ValueError(f"resize {self.resize} with size {self.size}; give a size, or resize none and no size")
        return self


def shard_dataset(source_url: str, out: str, config: ShardConfig, num_workers: int) -> dict[str, Any]:
    """Write the dataset `out` from the pairs of `source_url`; the summary of all its shards, old and new.

    Raises:
        UserError: nothing to read, nothing readable, or `out` holds another dataset.
    """
    pairs = [_with_free_names(pair) for pair in open_source(source_url).pairs()]
    if not pairs:
        raise UserError(f"{source_url}: no pictures here; a dataset needs at least one pair of picture and caption")
    plan = {"config": config.model_dump(), "input": {"pairs": len(pairs), "digest": _digest_of_pairs(pairs)}}
    done = _finished_shards(out, plan)
    tasks = [task for task in _tasks(pairs, out, config, plan) if shard_name(task.shard_id) not in done]
    for stats in map_unordered(make_shard, tasks, num_workers, f"sharding into {out}"):
        done[stats["shard"]["name"]] = stats
    records = [done[name] for name in sorted(done, key=lambda name: int(name.removesuffix(".tar")))]
    return {"out": out, "written_now": len(tasks)} | _finish(out, plan, records)


def _with_free_names(pair: Pair) -> Pair:
    """The pair with `input_` before each further column whose name the shard's table needs itself."""
    extra = {f"input_{name}" if name in OWN_COLUMNS else name: value for name, value in pair.extra.items()}
    return replace(pair, extra=extra)


def _digest_of_pairs(pairs: Iterable[Pair]) -> str:
    """sha256 hex digest of what the source says about its pairs; independent of where the source lies."""
    digest = hashlib.sha256()
    for pair in pairs:
        facts = [pair.name, pair.caption, pair.caption_file is not None, pair.num_bytes, pair.extra]
        digest.update(json.dumps(facts, default=str).encode())
    return digest.hexdigest()


def _finished_shards(out: str, plan: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Stats by shard name of what an earlier run of the same plan has written.

    Raises:
        UserError: shards of another plan, or of another program.
    """
    names = storage.list_names(out)
    done = {}
    for name in names:
        if name.endswith("_stats.json"):
            stats = storage.read_json(storage.join(out, name))
            changes = config_differences(stats.get("plan", {}), plan)
            if changes:
                raise UserError(f"{out}: holds other shards ({'; '.join(changes)}); choose another --out")
            done[stats["shard"]["name"]] = stats
    foreign = [name for name in names if name.endswith(".tar") and not SHARD_NAME.fullmatch(name)]
    if not done and MANIFEST_NAME in names:
        foreign.append(MANIFEST_NAME)
    if foreign:
        raise UserError(f"{out}: {foreign[0]} is there and not made by `tessera-data shard`; choose another --out")
    return done


def _tasks(pairs: Sequence[Pair], out: str, config: ShardConfig, plan: dict[str, Any]) -> Iterator[ShardTask]:
    """One task for each shard: the mixed pairs, cut into runs of `samples_per_shard`."""
    order = shuffled_order(len(pairs), config.shuffle_seed)
    key_digits = math.ceil(math.log10(config.samples_per_shard)) if config.samples_per_shard > 1 else 1
    columns = _extra_columns(pairs)
    for shard_id, start in enumerate(range(0, len(pairs), config.samples_per_shard)):
        chosen = [pairs[n] for n in order[start : start + config.samples_per_shard]]
        yield ShardTask(out, shard_id, chosen, key_digits, config.resize, config.size, columns, plan)


def shuffled_order(num: int, seed: int) -> np.ndarray:
    """A permutation of range(num), int64 [num]: the places of sorted Philox words, the same with every numpy."""
    words = np.random.Philox(key=np.array([seed, num], dtype=np.uint64)).random_raw(num)
    return np.argsort(words, kind="stable")


def _extra_columns(pairs: Iterable[Pair]) -> dict[str, str]:
    """Arrow type of each further column over the whole input, so that all shards have one schema; else string."""
    kinds: dict[str, set[type]] = {}
    for pair in pairs:
        for name, value in pair.extra.items():
            kinds.setdefault(name, set()).update([] if value is None else [type(value)])
    aliases = {bool: "bool", int: "int64", float: "double"}
    return {name: aliases.get(found.pop(), "string") if len(found) == 1 else "string" for name, found in kinds.items()}


def _finish(out: str, plan: dict[str, Any], stats: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Write the manifest and add the stats of all shards up.

    Raises:
        UserError: not one sample could be read.
    """
    failures = sum((Counter(row["status_dict"]) for row in stats), Counter())
    num_samples = failures.pop(SUCCESS, 0)
    if not num_samples:
        raise UserError(f"{out}: not one of {plan['input']['pairs']} pictures could be read: {min(failures)}")
    _remove_torn_files(out)
    records = tuple(ShardRecord(**row["shard"]) for row in stats if row["shard"]["num_samples"])
    fingerprint = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
    manifest = Manifest("images", records, fingerprint)
    manifest.save(out)
    return {
        "shards": len(records),
        "samples": num_samples,
        "failed": sum(failures.values()),
        "failures": dict(failures.most_common()),
        "without_caption": sum(row["without_caption"] for row in stats),
        "bytes": manifest.num_bytes,
        "digest": manifest.digest,
    }


def _remove_torn_files(out: str) -> None:
    """Remove what killed runs were writing into a local folder; now that all shards are there, nobody writes."""
    if storage.is_local(out):
        for path in storage.local_path(out).glob(".*.partial"):
            path.unlink()
