"""The promises of the loader on real tars, for any world size, workers, batch size and place of a kill (P1 to P6).

Cheap samples (small latents) and few examples here; `-m slow` draws many more.
"""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import loader
from pipeline.data.dataset import DataConfig
from pipeline.data.latents import LatentStamp, array_bytes
from pipeline.data.loader import Loader
from pipeline.data.order import SampleOrder
from pipeline.data.selection import remove_selection, select
from pipeline.data.shards import load_manifest
from pipeline.data.tar import TarSample
from tests.data.small_shards import write_dataset

STAMP = LatentStamp("a" * 64, "float16", (1, 2, 2), 8, "center", "b" * 64)
COUNTS = (37, 0, 50, 113)
TOTAL, LANES, BLOCK = sum(COUNTS), 8, 2

RUN = st.tuples(st.integers(1, 8), st.integers(1, 6), st.integers(0, 3), st.integers(0, 6))
"""(ranks, samples of a rank's step, decode threads, steps until the kill)."""
MOST_RUNS = 8


@pytest.fixture(scope="module", autouse=True)
def short_plans():
    """The order is computed for a few batches in one go: by default it would be for 160 epochs of this dataset."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "PLANNED_SAMPLES", 48)
        yield


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """200 latents whose only number is their own, in shards of several sizes."""
    numbers = iter(range(TOTAL))
    shards = []
    for count in COUNTS:
        rows = [next(numbers) for _ in range(count)]
        members = [{"npy": array_bytes(np.full((1, 2, 2), n, np.float16)), "json": b"{}"} for n in rows]
        shards.append([TarSample(f"{n:05d}", m) for n, m in zip(rows, members, strict=True)])
    folder = str(tmp_path_factory.mktemp("latents"))
    write_dataset(folder, shards, kind="latents", stamp=STAMP.as_dict())
    return folder


def serve(url, samples_seen, world_size, per_rank, num_threads, num_steps, seed=5):
    """(global batches as [steps, samples] of sample ids, bytes fetched by all ranks)."""
    config = DataConfig(
        train=url,
        num_lanes=LANES,
        block_samples=BLOCK,
        num_fetch_threads=2,
        num_decode_threads=max(1, num_threads),
        prefetch_batches=1 + num_threads,
        fetch_ahead_batches=1 + num_threads,
    )
    ranks, fetched = [], 0
    for rank in range(world_size):
        with Loader(url, config, seed, rank, world_size, batch_size=world_size * per_rank) as opened:
            steps = []
            for batch in islice(opened.batches(samples_seen), num_steps):
                assert batch.latents[:, 0, 0, 0].tolist() == batch.sample_ids == [int(key) for key in batch.keys]
                steps.append(batch.sample_ids)
            assert len(steps) == num_steps  # equal steps on all ranks
            ranks.append(np.array(steps, dtype=np.int64).reshape(num_steps, per_rank))
            fetched += opened.bytes_fetched
    return np.stack(ranks, axis=2).reshape(num_steps, world_size * per_rank), fetched


@pytest.fixture(scope="module")
def undisturbed(url):
    """What one rank serves that nothing disturbs: as many samples as the longest chain of runs."""
    batches, _ = serve(url, 0, 1, 16, 0, MOST_RUNS * 8 * 6 * 6 // 16)
    return batches.ravel()


def chain_of_runs(url, undisturbed, runs):
    """Several attempts, each killed after some steps and gone on with from one number alone."""
    seen, parts = 0, []
    for world_size, per_rank, num_threads, num_steps in runs:
        batches, _ = serve(url, seen, world_size, per_rank, num_threads, num_steps)
        parts.append(batches.ravel())
        seen += batches.size
    served = np.concatenate(parts)
    assert np.array_equal(served, undisturbed[:seen])  # resumed = uninterrupted, whatever changed
    for epoch in range(seen // TOTAL):
        assert np.array_equal(np.sort(served[epoch * TOTAL : (epoch + 1) * TOTAL]), np.arange(TOTAL))


RUNS = st.lists(RUN, min_size=2, max_size=4)


@settings(max_examples=4)
@given(RUNS)
def test_any_chain_of_kills_and_resizes_is_one_undisturbed_run(url, undisturbed, runs):
    chain_of_runs(url, undisturbed, runs)


@pytest.mark.slow
@settings(max_examples=200)
@given(st.lists(RUN, min_size=2, max_size=MOST_RUNS))
def test_many_chains_of_kills_and_resizes(url, undisturbed, runs):
    chain_of_runs(url, undisturbed, runs)


def test_a_whole_epoch_over_eight_ranks_and_a_selection_over_seven(url):
    batches, _ = serve(url, 0, 8, 5, 2, 5)
    assert np.array_equal(np.sort(batches.ravel()), np.arange(TOTAL))
    select(load_manifest(url), np.arange(TOTAL) % 3 > 0, {}).save(url)
    try:
        batches, _ = serve(url, 0, 7, 1, 1, 19)
        assert np.array_equal(np.sort(batches.ravel()), np.flatnonzero(np.arange(TOTAL) % 3))
    finally:
        remove_selection(url)


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_bytes_fetched_are_bytes_used_when_ranks_divide_lanes(url, world_size):
    manifest = load_manifest(url)
    used = sum(record.num_bytes - 1024 for record in manifest.shards)  # but for the ends of the archives
    per_rank = 8 // world_size
    _, fetched = serve(url, 0, world_size, per_rank, 0, 3 * TOTAL // 8)
    of_a_block = used / (TOTAL / BLOCK)
    straddling = LANES * of_a_block  # a block across two lanes may be read by the ranks of both
    ahead = 8 * 4 * of_a_block  # of the fourth epoch: ready, decoded, being fetched, planned
    assert 3 * used <= fetched <= 3 * (used + straddling) + ahead


@given(st.integers(0, 10**15), st.integers(1, 10**12))
@settings(max_examples=30)
def test_the_state_is_one_number(seen, num_samples):
    """Anywhere on the axis of any dataset a position is computed alone, from the number of samples seen."""
    epochs, ids = SampleOrder(num_samples, 1, 240, 64).samples_at(np.array([seen]))
    assert epochs[0] == seen // num_samples and 0 <= ids[0] < num_samples
