"""Bounds that hold at any size: a billion samples by their manifest alone, and the loader's memory as it is stated."""

import gc
import tracemalloc
from itertools import islice

import numpy as np
import pytest

from pipeline.data.dataset import DataConfig
from pipeline.data.loader import Loader
from pipeline.data.members import Members, pack
from pipeline.data.shards import Manifest, ShardRecord, shard_name
from tests.data.small_shards import write_pictures


def test_a_billion_samples_cost_their_manifest(tmp_path):
    """No index is read and no array of samples is made before the first read, wherever in the epoch it is."""
    num_shards, num_samples = 1000, 1_000_000
    records = (ShardRecord(shard_name(n), num_samples, 250 * num_samples, f"{n:064x}") for n in range(num_shards))
    Manifest("images", tuple(records)).save(str(tmp_path))
    gc.collect()
    tracemalloc.start()
    with Loader(str(tmp_path), DataConfig(train="", num_lanes=960), 0, 3, 8, batch_size=4096) as loader:
        first = [slot.sample_id for slot in next(loader._slots(950_000_000))]
        _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(set(first)) == 512 and max(first) > 900_000_000
    assert peak < 20 << 20


def test_a_part_of_a_billion_costs_bits_not_numbers():
    chosen = np.random.default_rng(0).random(3_000_000) < 0.3
    gc.collect()
    tracemalloc.start()
    members = Members(pack(chosen))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < len(chosen) * 0.15  # a bit each, and 8 bytes for each 512 of them
    places = np.array([0, 1, 1000, len(members) // 2, len(members) - 1])
    assert np.array_equal(members.ids(places), np.flatnonzero(chosen)[places])


@pytest.mark.parametrize(
    ("lanes", "block_samples", "batch_size", "ahead"), [(4, 4, 8, 2), (2, 8, 16, 4), (8, 2, 4, 16)]
)
def test_memory_is_bounded_as_stated(tmp_path, lanes, block_samples, batch_size, ahead):
    """Compressed blocks: datasets x lanes of the rank x (2 + window / lane) + 1; docs/loader.md has the formula."""
    write_pictures(str(tmp_path), [300, 200])
    fields = {"num_lanes": lanes, "block_samples": block_samples, "fetch_ahead_batches": ahead, "image_size": 8}
    for world_size in (1, 2):
        config = DataConfig(train=str(tmp_path), **fields)
        own_lanes, window = lanes // world_size, ahead * batch_size // world_size
        bound = own_lanes * (2 + window // (own_lanes * block_samples)) + 1
        with Loader(str(tmp_path), config, 0, 0, world_size, batch_size=batch_size) as loader:
            most = 0
            for _ in islice(loader.batches(), 500 // batch_size):
                most = max(most, len(loader._reader._source._blocks))
        assert 0 < most <= bound < 500 / block_samples
