"""Pairs -> shards: plan what goes into which shard, let workers write them, name them all in a manifest.

A shard with a stats file is done: the same command again writes only what is missing, and a command with other inputs
or settings on the same folder is refused. Called by `tessera-data shard`.
"""

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from data_tools.finish import finish_dataset
from data_tools.kept import UNDER_WAY, is_open
from data_tools.pair_list import PairList
from data_tools.pixels.prepare import Extension
from data_tools.pixels.resize import ResizeMode
from data_tools.pool import Engine, map_unordered
from data_tools.shard_writer import ShardTask, make_shard
from data_tools.sources.pair import Source
from data_tools.table import free_name
from data_tools.web import WebConfig
from pipeline import storage
from pipeline.config import Config, UserError, config_differences
from pipeline.data.shards import MANIFEST_NAME, shard_name

SHARD_NAME = re.compile(r"\d{5,}\.tar")
NUM_READERS = 16
"""Threads that read the stats of finished shards."""


class ShardConfig(Config):
    """What becomes of the pictures, and in which order they come."""

    size: int | None = Field(None, gt=0)
    """Side in pixels: of the square for center_crop and border, of the shorter side for keep_ratio, else the longer."""
    resize: ResizeMode = "center_crop"
    """center_crop, keep_ratio, keep_ratio_largest, border or none."""
    format: Extension | None = None
    """Of all stored pictures; None: png when every input is named like a lossless picture, else jpg."""
    quality: int = Field(95, ge=1, le=100)
    """Of JPEG and WebP that have to be encoded."""
    samples_per_shard: int = Field(1000, gt=0)
    """Input rows of a shard; those that fail leave a gap."""
    shuffle_seed: int = Field(0, ge=0)
    """The pairs are mixed over all shards once, so that a shard is no single folder."""

    @model_validator(mode="after")
    def _size_fits_resize(self) -> "ShardConfig":
        if (self.size is None) != (self.resize == "none"):
            raise ValueError(f"resize {self.resize} with size {self.size}; give a size, or resize none and no size")
        return self


class WorkConfig(Config):
    """Who does which part of the work; none of it changes what a whole dataset holds."""

    num_workers: int = Field(1, gt=0)
    """Worker processes on this machine."""
    engine: Engine = "process"
    """process, or ray: the cores of a cluster."""
    share: tuple[int, int] = (0, 1)
    """(i, n): the i-th of n equal runs of shards, for n commands that work side by side."""
    retry_failed: bool = False
    """Inputs that failed in an earlier run are tried again, and what is found takes its place beside what is there."""
    web: WebConfig = WebConfig()
    """How pictures come over a network."""


def shard_dataset(source: Source, name: str, out: str, config: ShardConfig, work: WorkConfig) -> dict[str, Any]:
    """Write the dataset `out` from the pairs of `source`; the summary of all its shards, old and new.

    Args:
        name: what messages call the source.

    Raises:
        UserError: nothing to read, nothing readable, `out` holds another dataset, or cannot be written.
    """
    with PairList(source) as pairs:
        if not len(pairs):
            raise UserError(f"{name}: no pictures here; a dataset needs at least one pair of picture and caption")
        columns = {free_name(column): kind for column, kind in pairs.extra_columns().items()}
        extension: Extension = config.format or ("png" if pairs.all_lossless else "jpg")
        plan = _plan(config, extension, pairs, columns)
        found = _shards_of_plan(out, plan)
        done = {name: stats for name, stats in found.items() if UNDER_WAY not in stats}
        num_shards = -(-len(pairs) // config.samples_per_shard)
        todo = [n for n in _share_of(num_shards, work.share) if is_open(found.get(shard_name(n)), work.retry_failed)]
        if any(shard_name(number) in found for number in todo):
            storage.remove(storage.join(out, MANIFEST_NAME))  # until all agrees again
        tasks = _tasks(pairs, out, config, extension, columns, plan, _web_of_worker(work), todo, found)
        written = map_unordered(make_shard, tasks, len(todo), work.num_workers, f"sharding into {out}", work.engine)
        try:
            for stats in written:
                done[stats["shard"]["name"]] = stats
        except OSError as error:
            raise UserError(
                f"{out}: cannot be written: {error}; what is done stays, the same command goes on"
            ) from None
    return {"out": out, "written_now": len(todo)} | finish_dataset(out, plan, done, num_shards)


def _plan(config: ShardConfig, extension: Extension, pairs: PairList, columns: Mapping[str, str]) -> dict[str, Any]:
    """All that decides the bytes of the shards: what another run must agree with to go on here."""
    return {
        "config": config.model_dump() | {"format": extension},
        "input": {"pairs": len(pairs), "digest": pairs.digest, "columns": dict(columns)},
        "encoders": _encoders(),
    }


def _encoders() -> dict[str, str]:
    """Versions of the libraries that decide the bytes of a shard and its table."""
    import cv2
    import PIL
    import pyarrow

    modules = {"opencv": cv2, "pillow": PIL, "pyarrow": pyarrow}
    return {name: str(module.__version__) for name, module in modules.items()} | {"simplejpeg": version("simplejpeg")}


def _shards_of_plan(out: str, plan: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Stats by shard name of what earlier runs of the same plan have written.

    Raises:
        UserError: shards of another plan, or of another program.
    """
    names = storage.list_names(out)
    done = {}
    with ThreadPoolExecutor(NUM_READERS) as pool:
        places = [storage.join(out, name) for name in names if name.endswith("_stats.json")]
        for stats in pool.map(storage.read_json, places):
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


def _share_of(num_shards: int, share: tuple[int, int]) -> range:
    """The shards of one of `share[1]` commands."""
    index, count = share
    return range(num_shards * index // count, num_shards * (index + 1) // count)


def _web_of_worker(work: WorkConfig) -> WebConfig:
    """The connections to a host, dealt out to the workers."""
    each = max(1, work.web.connections_per_host // work.num_workers)
    return work.web.model_copy(update={"connections_per_host": each})


def _tasks(
    pairs: PairList,
    out: str,
    config: ShardConfig,
    extension: Extension,
    columns: Mapping[str, str],
    plan: Mapping[str, Any],
    web: WebConfig,
    shard_ids: Sequence[int],
    found: Collection[str],
) -> Iterator[ShardTask]:
    """One task for each shard: the mixed pairs, cut into runs of `samples_per_shard`."""
    order = _order(pairs, config.shuffle_seed)
    key_digits = math.ceil(math.log10(config.samples_per_shard)) if config.samples_per_shard > 1 else 1
    plan = json.loads(json.dumps(plan))  # as it will be read again
    for shard_id in shard_ids:
        start = shard_id * config.samples_per_shard
        yield ShardTask(
            out=out,
            shard_id=shard_id,
            pairs=pairs.take(order[start : start + config.samples_per_shard]),
            key_digits=key_digits,
            resize=config.resize,
            size=config.size,
            extension=extension,
            quality=config.quality,
            web=web,
            extra_columns=columns,
            plan=plan,
            keeps_samples=shard_name(shard_id) in found,
        )


def _order(pairs: PairList, seed: int) -> np.ndarray:
    """The pairs mixed; where they lie in row groups, which are read as a whole, the groups mixed."""
    if not len(pairs.group_starts):
        return shuffled_order(len(pairs), seed)
    groups = np.split(np.arange(len(pairs)), pairs.group_starts[1:])
    return np.concatenate([groups[number] for number in shuffled_order(len(groups), seed)])


def shuffled_order(num: int, seed: int) -> np.ndarray:
    """A permutation of range(num), int64 [num]: the places of sorted Philox words, the same with every numpy."""
    words = np.random.Philox(key=np.array([seed, num], dtype=np.uint64)).random_raw(num)
    return np.argsort(words, kind="stable")
