"""Phases of a run on real tars: switched where a step begins, resumed anywhere, the same on any number of ranks."""

import math
from itertools import islice

import pytest

from pipeline.config import UserError
from pipeline.data.curriculum import PhaseConfig, open_curriculum
from pipeline.data.dataset import DataConfig
from tests.data.small_shards import write_pictures

TOTAL, SMALL, LARGE = 40, 8, 16


@pytest.fixture(scope="module")
def urls(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phases")
    write_pictures(str(folder / "small"), [25, 15], (SMALL, SMALL))
    write_pictures(str(folder / "large"), [25, 15], (LARGE, LARGE))
    return str(folder / "small"), str(folder / "large")


def opened(urls, rank=0, world_size=1, **changes):
    small, large = urls
    phase = {"until_samples": 18, "train": small, "image_size": SMALL, "batch_size": 4, "validation": small} | changes
    data = DataConfig(train=large, image_size=LARGE, num_lanes=12, block_samples=4)
    return open_curriculum([PhaseConfig(**phase)], data, 6, seed=1, rank=rank, world_size=world_size)


def steps(urls, num_steps, samples_seen=0, world_size=1):
    """(keys, side) of the first global batches from a position on, put together from the ranks' slices."""
    parts = []
    for rank in range(world_size):
        curriculum = opened(urls, rank, world_size)
        stream = islice(curriculum.batches(samples_seen), num_steps)
        parts.append([(batch.keys, batch.images.shape[-1]) for batch in stream])
        curriculum.close()
    return [
        ([key for keys in zip(*(keys for keys, _ in rows), strict=True) for key in keys], rows[0][1])
        for rows in zip(*parts, strict=True)
    ]


def test_a_step_belongs_to_the_phase_in_which_it_begins(urls):
    found = steps(urls, 9)
    assert [(len(keys), side) for keys, side in found] == [(4, SMALL)] * 5 + [(6, LARGE)] * 4  # 16 < 18 <= 20
    curriculum = opened(urls)
    assert [curriculum.batch_size_at(seen) for seen in (0, 16, 17, 18, 20, 10**9)] == [4, 4, 4, 6, 6, 6]
    assert curriculum.validation_at(18) is None
    assert sum(len(batch.keys) for batch in curriculum.validation_at(17)) == TOTAL
    curriculum.close()


def test_phases_over_the_same_samples_share_an_epoch(urls):
    keys = [key for keys, _ in steps(urls, 9) for key in keys]
    assert sorted(keys[:TOTAL]) == [f"{n:05d}" for n in range(TOTAL)]


def test_every_step_can_be_the_first_of_an_attempt(urls):
    whole, seen = steps(urls, 9), 0
    for begin, (keys, _) in enumerate(whole):
        assert steps(urls, 3, samples_seen=seen) == steps(urls, 12)[begin : begin + 3]
        seen += len(keys)


def test_ranks_share_the_same_steps(urls):
    assert steps(urls, 9, world_size=2) == steps(urls, 9)


def test_the_digest_is_of_all_data(urls):
    small, large = urls
    runs = [opened(urls), opened(urls, train=large), open_curriculum([], DataConfig(train=large), 4, 0, 0, 1)]
    assert len({run.digest for run in runs}) == 3
    assert runs[2].digest == runs[2]._phases[0].loader.digest  # a run without phases is known by its data alone
    assert math.isinf(runs[2]._phases[0].until_samples)
    for run in runs:
        run.close()


def test_a_late_mistake_is_told_at_once(urls):
    with pytest.raises(UserError, match="missing"):
        opened((urls[0], urls[1] + "/missing"))
    with pytest.raises(UserError, match="batch_size 3 does not divide by 2 ranks"):
        opened(urls, world_size=2, batch_size=3)
