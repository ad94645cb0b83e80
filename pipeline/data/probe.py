"""How fast a dataset can be read here, stage by stage: fetching, decoding, copying, and all of it together.

Called by `tessera doctor --data`.
"""

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, islice

import numpy as np
import torch

from pipeline.config import UserError
from pipeline.data.dataset import DataConfig, make_plan, open_buckets, open_datasets
from pipeline.data.index import BlockIndex, ShardTable
from pipeline.data.loader import PLANNED_SAMPLES, Loader
from pipeline.data.open_reader import open_decoder
from pipeline.data.plan import Plan
from pipeline.data.samples import BadSample, Decoded
from pipeline.data.source import BlockSource
from pipeline.data.tar import TarSample
from pipeline.randomness import Draws

MAX_DECODED = 512
"""Samples that are kept to time their decoding and copying."""

NUM_RANGES = 64
"""Blocks whose ranges are looked at for bytes between the samples."""


@dataclass(frozen=True)
class Speed:
    """Samples a second of each stage alone, and of the loader with all of them."""

    network: float
    """Fetching and parsing blocks in the order of training, with the config's threads."""
    decode: float
    """Decoding, with the config's threads."""
    copying: float
    """Stacking into batches, and bringing them to the GPU where there is one."""
    fed: float
    """What the loader hands over."""
    fetched_over_used: float
    """Bytes fetched for each byte of a sample that is trained on, over an epoch."""

    @property
    def bound(self) -> str:
        """The slowest stage."""
        return min(("network", "decode", "copying"), key=lambda stage: getattr(self, stage))


def measure(config: DataConfig, batch_size: int, world_size: int, seconds: float) -> Speed:
    """Read for about four times `seconds`, as one rank of `world_size` does.

    Raises:
        UserError, OSError: as `Loader`.
    """
    datasets = open_datasets(config.train, config.block_samples)
    buckets = open_buckets(datasets, config)
    plan = make_plan(datasets, buckets, config, 0, batch_size)
    index = BlockIndex(
        ShardTable([(each.url, each.manifest.shards, each.first_id) for each in datasets]), plan, config.block_samples
    )
    network, held = _fetching(index, plan, config, seconds)
    decode = open_decoder(datasets[0], config, Draws(0), buckets)
    samples = held[: 8 * batch_size]

    def decoded(item: tuple[int, TarSample]) -> Decoded | None:
        with suppress(BadSample):
            return decode(item[1], 0, item[0])
        return None

    with ThreadPoolExecutor(config.num_decode_threads) as pool:
        done = [one for one in pool.map(decoded, samples) if one is not None]
        if not done:
            raise UserError(f"none of the first {len(samples)} samples decodes; run `tessera-data validate`")
        decoding = _rate(lambda: len(list(pool.map(decoded, samples))), seconds)
    alike = [one for one in done if one.array.shape == done[0].array.shape][:batch_size]
    copying = _rate(lambda: _copied(decode.stack(alike).images, len(alike)), seconds)
    fed = _feeding(config, batch_size, seconds)
    return Speed(network, decoding, copying, fed, _amplification(index, plan, config, world_size))


def _fetching(
    index: BlockIndex, plan: Plan, config: DataConfig, seconds: float
) -> tuple[float, list[tuple[int, TarSample]]]:
    """Samples a second through the source alone, and some of them with their ids."""
    source = BlockSource(index, 4 * config.num_fetch_threads, config.num_fetch_threads)
    blocks, held, num_read = _blocks(index, plan), list[tuple[int, TarSample]](), 0
    waiting: list[int] = []
    start = time.perf_counter()
    try:
        while time.perf_counter() - start < seconds:
            waiting += islice(blocks, 2 * config.num_fetch_threads - len(waiting))
            source.prefetch(waiting)
            found = source.get(block := waiting.pop(0))
            if isinstance(found, list):
                num_read += len(found)
                ids = plan.sample_ids(np.arange(len(found)) + block * config.block_samples).tolist()
                held += list(zip(ids, found, strict=True))[: MAX_DECODED - len(held)]
        return num_read / (time.perf_counter() - start), held
    finally:
        source.close()


def _blocks(index: BlockIndex, plan: Plan) -> Iterator[int]:
    """Blocks in the order in which training first needs them, again and again."""
    for begin in count(0, PLANNED_SAMPLES):
        _, places = plan.places_at(np.arange(begin, begin + PLANNED_SAMPLES))
        yield from dict.fromkeys(index.block_of(place) for place in places.tolist())


def _rate(work: Callable[[], int], seconds: float) -> float:
    """Samples a second of `work`, which returns how many it did."""
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        done += work()
    return done / (time.perf_counter() - start)


def _copied(images: torch.Tensor | None, num_samples: int) -> int:
    """Bring a batch to the GPU where there is one."""
    if images is not None and torch.cuda.is_available():
        images.cuda()
        torch.cuda.synchronize()
    return num_samples


def _feeding(config: DataConfig, batch_size: int, seconds: float) -> float:
    """Samples a second out of the loader, after as many batches as it holds ready."""
    with Loader(config.train, config, 0, batch_size=batch_size) as loader:
        batches = loader.batches()
        for _ in range(config.prefetch_batches + 1):
            next(batches)
        return _rate(lambda: len(next(batches).keys), seconds)


def _amplification(index: BlockIndex, plan: Plan, config: DataConfig, world_size: int) -> float:
    """Bytes between the samples of a block, measured; blocks read by two ranks, counted."""
    lanes = config.num_lanes
    readers = world_size // math.gcd(world_size, lanes)  # of each lane
    num_blocks = sum(axis.order.num_blocks for axis in plan.axes)
    straddling = len(plan.axes) * min(lanes, num_blocks) / num_blocks if world_size > 1 else 0.0
    fetched = used = 0.0
    for block in islice(_blocks(index, plan), NUM_RANGES):
        for piece in index.ranges(block):
            size = piece.stop - piece.start
            fetched += size
            used += size * (1.0 if piece.wanted is None else len(piece.wanted) / piece.num_samples)
    return fetched / used * (readers + straddling)
