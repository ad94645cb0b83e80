"""Several datasets: exact proportions everywhere, every lane its own, each dataset's epochs whole, and real tars."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import UserError
from pipeline.data.dataset import DataConfig, PartConfig
from pipeline.data.loader import Loader
from pipeline.data.mixture import Mixture, shares_of
from pipeline.data.order import SampleOrder
from pipeline.data.plan import Axis, Plan, next_block
from tests.data.small_shards import write_pictures
from tests.data.test_latents import write_latents

SHARES = st.lists(st.integers(1, 5), min_size=2, max_size=4).map(tuple)


def plan_of(counts, shares, num_lanes=6, block_samples=4, seed=3):
    axes, last = [], 0
    for count in counts:
        first = next_block(last, block_samples)
        axes.append(Axis(SampleOrder(count, seed, num_lanes, block_samples), first, first))
        last = first + count
    return Plan(tuple(axes), Mixture(shares, num_lanes, seed))


@given(SHARES, st.integers(1, 12), st.integers(0, 50))
def test_every_run_of_a_period_is_exact(shares, num_lanes, period_number):
    period = sum(shares)
    mixture = Mixture(shares, num_lanes, 7)
    rows = period_number * period + np.arange(period)
    numbers, _ = mixture.split((rows[:, None] * num_lanes + np.arange(num_lanes)).ravel())
    table = numbers.reshape(period, num_lanes)
    for lane in table.T:
        assert np.bincount(lane, minlength=len(shares)).tolist() == list(shares)
    for row in table:
        for begin in range(num_lanes - period + 1):
            assert np.bincount(row[begin : begin + period], minlength=len(shares)).tolist() == list(shares)


@given(SHARES, st.integers(1, 12))
def test_each_dataset_is_gone_through_in_order_and_without_gaps(shares, num_lanes):
    mixture, period = Mixture(shares, num_lanes, 7), sum(shares)
    numbers, own = mixture.split(np.arange(3 * period * num_lanes))
    for number, share in enumerate(shares):
        assert sorted(own[numbers == number]) == list(range(3 * share * num_lanes))
    assert np.array_equal(own % num_lanes, np.arange(len(own)) % num_lanes)  # a lane stays a lane


@given(SHARES, st.integers(0, 500), st.sampled_from([1, 2, 3, 6]))
def test_a_part_of_the_positions_is_computed_alone(shares, first, world_size):
    plan = plan_of([50, 33, 71, 20][: len(shares)], shares)
    whole = np.stack(plan.places_at(np.arange(first, first + 60)))
    for rank in range(world_size):
        own = np.stack(plan.places_at(np.arange(first + rank, first + 60, world_size)))
        assert np.array_equal(own, whole[:, rank::world_size])


def test_epochs_of_each_dataset_are_whole():
    plan = plan_of([24, 10], (2, 1))
    epochs, places = plan.places_at(np.arange(3 * 60))  # 120 of the first, 60 of the second
    first = places < 24
    for count, chosen, num_epochs in ((24, first, 5), (10, ~first, 6)):
        for epoch in range(num_epochs):
            assert len(set(places[chosen & (epochs == epoch)])) == count


@pytest.mark.parametrize(
    ("weights", "shares"), [((1, 1), (1, 1)), ((0.3, 0.7), (3, 7)), ((2, 4, 6), (1, 2, 3)), ((0.1, 0.25), (2, 5))]
)
def test_shares_are_exact(weights, shares):
    assert shares_of(weights) == shares


def test_weights_that_are_never_exact_are_refused():
    with pytest.raises(UserError, match=r"exact in 10007ths only; round them"):
        shares_of([10_000, 7])


def parts(tmp_path):
    write_pictures(str(tmp_path / "a"), [13, 9])
    write_pictures(str(tmp_path / "b"), [7])
    return (PartConfig(url=str(tmp_path / "a"), weight=3), PartConfig(url=str(tmp_path / "b"), weight=1))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_loader_of_two_datasets(tmp_path, world_size):
    train = parts(tmp_path)
    config = DataConfig(train=train, image_size=8, num_lanes=12, block_samples=4)
    served = []
    for rank in range(world_size):
        with Loader(train, config, 0, rank, world_size, batch_size=12) as loader:
            assert loader.num_samples == 29
            served += [
                (epoch, sample_id, key, caption)
                for batch in islice(loader.batches(), 8)
                for epoch, sample_id, key, caption in zip(
                    batch.epochs, batch.sample_ids, batch.keys, batch.captions, strict=True
                )
            ]
    first = [(epoch, int(key)) for epoch, i, key, _ in served if i < 24]
    assert (len(served), len(first)) == (96, 72)  # three quarters, to the sample
    assert sorted(key for epoch, key in first if epoch == 1) == list(range(22))
    assert all(int(key) == (i if i < 24 else i - 24) for _, i, key, _ in served)
    assert {int(key) for _, i, key, _ in served if i >= 24} == set(range(7))
    assert [c for *_, c in served] == [f"caption {int(key)}" for *_, key, _ in served]


def test_weights_belong_to_the_digest_and_forms_must_agree(tmp_path):
    train = parts(tmp_path)
    digests = set()
    for weights in ((3, 1), (1, 1), (6, 2)):
        chosen = tuple(PartConfig(url=p.url, weight=w) for p, w in zip(train, weights, strict=True))
        with Loader(chosen, DataConfig(train=chosen, image_size=8), 0, batch_size=4) as loader:
            digests.add(loader.digest)
    assert len(digests) == 2
    write_latents(str(tmp_path / "latents"))
    chosen = (train[0], PartConfig(url=str(tmp_path / "latents"), weight=1))
    with pytest.raises(UserError, match=r"latents holds latents \(2, 4, 4\) of aaaaaaaaaaaa.* images"):
        Loader(chosen, DataConfig(train=chosen), 0, batch_size=4)
    with pytest.raises(UserError, match="one dataset of pictures"):
        Loader(train, DataConfig(train=train, aspect_buckets=True), 0, batch_size=4)


def test_a_list_of_one_is_the_dataset_itself(tmp_path):
    train = parts(tmp_path)[:1]
    streams = []
    for what in (train, train[0].url):
        config = DataConfig(train=what, image_size=8, num_lanes=12, block_samples=4)
        with Loader(what, config, 0, batch_size=5) as loader:
            streams.append((loader.digest, [batch.keys for batch in islice(loader.batches(), 9)]))
    assert streams[0] == streams[1]
