"""The order is a bijection of every epoch, the same everywhere, independent of world size, well mixed (P1-P5, P8)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.order import SampleOrder, permute, unpermute
from pipeline.randomness import Draws, Purpose

KEYS = Draws(0).bits(Purpose.ORDER, [0], [0], 8)[0]
ORDERS = st.builds(
    SampleOrder,
    num_samples=st.integers(1, 700),
    seed=st.integers(0, 2**32),
    num_lanes=st.sampled_from([1, 2, 3, 12, 60, 240]),
    block_samples=st.integers(1, 70),
)


def served(order, start, stop, world_size, batch_size):
    """What the ranks serve together from `start` on: a list of global batches, each put together from rank slices."""
    batches = []
    for first in range(start, stop, batch_size):
        batch = np.empty((batch_size, 2), dtype=np.int64)
        for rank in range(world_size):
            positions = np.arange(first + rank, first + batch_size, world_size)
            batch[rank::world_size] = np.stack(order.samples_at(positions), 1)
        batches.append(batch)
    return np.concatenate(batches)


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_permute_is_a_bijection_and_unpermute_its_inverse(size, tweak):
    values = np.arange(size, dtype=np.uint64)
    shuffled = permute(values, size, KEYS, tweak)
    assert np.array_equal(np.sort(shuffled), values)
    assert np.array_equal(unpermute(shuffled, size, KEYS, tweak), values)


@given(ORDERS, st.integers(0, 5))
def test_every_epoch_holds_each_sample_once(order, epoch):  # P1
    n = order.num_samples
    epochs, samples = order.samples_at(np.arange(epoch * n, (epoch + 1) * n))
    assert set(epochs) == {epoch}
    assert np.array_equal(np.sort(samples), np.arange(n))


@given(ORDERS, st.sampled_from([1, 2, 3, 4, 6]), st.integers(1, 4), st.integers(0, 2000))
def test_global_batches_do_not_depend_on_the_world_size(order, world_size, per_rank, start):  # P2
    batch_size = world_size * per_rank
    stop = start + 3 * batch_size
    assert np.array_equal(served(order, start, stop, world_size, batch_size), served(order, start, stop, 1, batch_size))


RUNS = st.lists(st.tuples(st.sampled_from([1, 2, 4]), st.integers(1, 8), st.integers(0, 5)), min_size=1, max_size=5)


@given(ORDERS, RUNS)
def test_resume_with_other_ranks_and_batch_sizes_continues_the_stream(order, runs):  # P3, P4
    seen, parts = 0, []
    for world_size, per_rank, num_steps in runs:
        batch_size = world_size * per_rank
        for _ in range(num_steps):
            parts.append(served(order, seen, seen + batch_size, world_size, batch_size))
            seen += batch_size
    assert sum(len(part) for part in parts) == seen
    if seen:
        assert np.array_equal(np.concatenate(parts), served(order, 0, seen, 1, seen))


@given(ORDERS)
def test_a_position_is_computed_alone(order):  # P5: no walk from the start of the epoch
    n = order.num_samples
    whole = order.samples_at(np.arange(n))[1]
    alone = [int(order.samples_at(np.array([p]))[1][0]) for p in (0, n // 2, n - 1)]
    assert alone == [whole[0], whole[n // 2], whole[n - 1]]


def test_orders_differ_between_epochs_and_seeds():  # P8
    order = SampleOrder(1000, 1, 60, 16)
    first, second = (order.samples_at(np.arange(e * 1000, (e + 1) * 1000))[1] for e in (0, 1))
    other = SampleOrder(1000, 2, 60, 16).samples_at(np.arange(1000))[1]
    for a, b in ((first, second), (first, other)):
        assert np.mean(a == b) < 0.02


def test_order_is_the_same_on_every_machine():  # P8: golden values, written down once
    assert SampleOrder(10_000, 7, 240, 64).samples_at(np.array([0, 1, 2, 9_999, 10_000]))[1].tolist() == GOLDEN
    assert SampleOrder(10**12, 7, 240, 64).samples_at(np.array([0, 10**12 - 1, 10**12]))[1].tolist() == GOLDEN_LARGE


@pytest.mark.parametrize("batch_size", [16, 240])
def test_a_batch_mixes_as_many_blocks_as_it_can(batch_size):
    order = SampleOrder(240 * 640, 3, 240, 64)
    blocks = order.samples_at(np.arange(5 * batch_size, 6 * batch_size))[1] // 64
    assert len(np.unique(blocks)) > 0.95 * batch_size


@pytest.mark.parametrize("world_size", [1, 2, 8])
def test_each_block_is_read_once_when_ranks_divide_lanes(world_size):  # P6
    order = SampleOrder(240 * 128, 3, 240, 64)
    reads = 0
    for rank in range(world_size):
        blocks = order.samples_at(np.arange(rank, order.num_samples, world_size))[1] // 64
        reads += len(np.unique(blocks))
    assert reads <= order.num_blocks + 240  # a block that straddles two lanes may be read by two ranks


@settings(max_examples=5, deadline=None)
@given(st.integers(2, 12))
def test_small_permutations_are_uniform(size):
    """Chi-square of where 0 lands over 4000 tweaks: the 12-sigma bound never fires by chance."""
    landed = permute(np.zeros(4000, dtype=np.uint64), size, KEYS, np.arange(4000, dtype=np.uint64))
    expected = 4000 / size
    chi2 = ((np.bincount(landed.astype(np.int64), minlength=size) - expected) ** 2 / expected).sum()
    assert chi2 < size - 1 + 12 * np.sqrt(2 * (size - 1))


@given(ORDERS, st.integers(0, 3), st.integers(0, 20))
def test_substitutes_are_samples_and_repeatable(order, epoch, attempt):  # P7
    chosen = order.substitute(epoch, 0, attempt)
    assert 0 <= chosen < order.num_samples
    assert chosen == order.substitute(epoch, 0, attempt)


GOLDEN = [1145, 1110, 8689, 4182, 7220]
GOLDEN_LARGE = [864967726001, 310788017707, 535478516559]
