"""Aspect buckets: one shape a batch, equal steps, every picture once an epoch of its bucket, nothing dropped."""

import json
from contextlib import closing
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_tools.buckets import BucketsConfig, make_buckets
from data_tools.commands import buckets as command
from pipeline.config import UserError
from pipeline.data.buckets import BatchesOfBuckets, nearest_shapes, shapes_near
from pipeline.data.curriculum import PhaseConfig, open_curriculum
from pipeline.data.dataset import DataConfig
from pipeline.data.loader import Loader
from pipeline.data.selection import select
from pipeline.data.shards import load_manifest
from pipeline.models.autoencoder import Autoencoder, AutoencoderConfig
from pipeline.models.unet import UNet, UNetConfig
from tests.data.small_shards import samples, write_dataset

COUNTS = st.lists(st.integers(1, 60), min_size=1, max_size=5).map(tuple)
SIZES = {(24, 24): 11, (36, 16): 8, (16, 36): 5}
"""(width, height) of the pictures -> how many."""


@given(COUNTS, st.integers(1, 20))
def test_batches_follow_the_counts_and_are_numbered_through(counts, batch_size):
    plan = BatchesOfBuckets(counts, batch_size, 3)
    num_steps = 3 * sum(counts) // batch_size + 5
    drawn = [plan.batch(step) for step in range(num_steps)]
    for bucket, count in enumerate(counts):
        numbers = [number for which, number in drawn if which == bucket]
        assert numbers == list(range(len(numbers)))  # in order: none twice, none left out
        share = num_steps * count / sum(counts)
        assert abs(len(numbers) - share) <= 2 + len(counts) * count / sum(counts)


@given(COUNTS, st.integers(1, 20), st.integers(0, 100))
def test_a_position_is_computed_alone(counts, batch_size, step):
    plan = BatchesOfBuckets(counts, batch_size, 3)
    whole = np.stack(plan.split(np.arange((step + 2) * batch_size)))
    own = np.stack(plan.split(np.arange(step * batch_size, (step + 2) * batch_size)))
    assert np.array_equal(own, whole[:, step * batch_size :])
    assert len(set(own[0, :batch_size])) == 1  # one bucket a batch


@given(st.sampled_from([64, 256, 512]), st.sampled_from([8, 32]), st.floats(1, 4))
def test_shapes(side, multiple, max_aspect):
    shapes = shapes_near(side, multiple, max_aspect)
    assert (side, side) in shapes and len(set(shapes)) == len(shapes) < 256
    for height, width in shapes:
        assert height % multiple == width % multiple == 0
        assert height * width <= side * side and max(height, width) <= max_aspect * min(height, width)
    own = nearest_shapes(np.array([h for h, _ in shapes]), np.array([w for _, w in shapes]), shapes)
    assert [shapes[n][0] / shapes[n][1] for n in own] == [h / w for h, w in shapes]


@pytest.fixture
def url(tmp_path):
    content, first = [], 0
    for size, count in SIZES.items():
        content += samples(count, first, size)
        first += count
    order = np.random.default_rng(0).permutation(first).tolist()
    write_dataset(str(tmp_path), [[content[n] for n in order[:10]], [content[n] for n in order[10:]]])
    return str(tmp_path)


def make(url, capsys):
    parser = command.argparse.ArgumentParser()
    command.configure(parser)
    assert command.run(parser.parse_args([url, "--image-size", "24", "--multiple", "8", "--json"])) == 0
    return json.loads(capsys.readouterr().out)["shapes"]


def config(url):
    return DataConfig(train=url, image_size=24, aspect_buckets=True, num_lanes=4, block_samples=4)


def serve(url, num_steps, world_size=1, samples_seen=0):
    """(keys, shape) of each global batch."""
    ranks = []
    for rank in range(world_size):
        with Loader(url, config(url), 0, rank, world_size, batch_size=4) as loader:
            batches = islice(loader.batches(samples_seen), num_steps)
            ranks.append([(batch.keys, tuple(batch.images.shape[2:]), batch.epochs) for batch in batches])
    assert all(len({shape for _, shape, _ in step}) == 1 for step in zip(*ranks, strict=True))
    return [
        ([k for keys in zip(*(row[0] for row in step), strict=True) for k in keys], step[0][1], step[0][2])
        for step in zip(*ranks, strict=True)
    ]


def test_loading(url, capsys):
    assert make(url, capsys) == {"24x24": 11, "32x16": 8, "16x32": 5}
    whole = serve(url, 40)
    sides = {(24, 24): range(11), (16, 32): range(11, 19), (32, 16): range(19, 24)}
    for keys, shape, _ in whole:
        assert {int(key) for key in keys} <= set(sides[shape])
    for shape, numbers in sides.items():
        served = [int(key) for keys, found, _ in whole if found == shape for key in keys]
        assert sorted(served[: len(numbers)]) == list(numbers)
    assert [keys for keys, *_ in serve(url, 20, world_size=2)] == [keys for keys, *_ in whole[:20]]
    assert [keys for keys, *_ in serve(url, 5, samples_seen=28)] == [keys for keys, *_ in whole[7:12]]


def test_a_selection_leaves_pictures_out_of_their_buckets(url, capsys):
    make(url, capsys)
    select(load_manifest(url), np.arange(24) % 2 == 0, {}).save(url)
    with Loader(url, config(url), 0, batch_size=4) as loader:
        assert loader.num_samples == 12
        assert {i for batch in islice(loader.batches(), 12) for i in batch.sample_ids} == set(range(0, 24, 2))


def test_what_does_not_fit_is_refused(url, capsys):
    with pytest.raises(UserError, match=r"buckets.json: not found; make them with `tessera-data buckets"):
        serve(url, 1)
    make(url, capsys)
    digests = set()
    for batch_size in (4, 8):
        with Loader(url, config(url), 0, batch_size=batch_size) as loader:
            digests.add(loader.digest)
    assert len(digests) == 2  # another batch size is another plan, and a run on it is not continued
    write_dataset(url, [samples(5)])
    with pytest.raises(UserError, match="made for another state"):
        serve(url, 1)


def test_a_phase_that_would_mix_two_shapes_in_a_batch_is_refused(url, capsys):
    make(url, capsys)

    def opened(until_samples, batch_size):
        phase = PhaseConfig(until_samples=until_samples, train=url, image_size=24, batch_size=batch_size)
        return open_curriculum((phase,), config(url), 4, 0, 0, 1)

    with pytest.raises(UserError, match="6 samples are seen where batches of 4 begin"):
        opened(5, 3)
    for until_samples, batch_size in ((10, 3), (7, 2), (8, 8)):
        with closing(opened(until_samples, batch_size)) as curriculum:
            shapes = [batch.images.shape for batch in islice(curriculum.batches(0), 12)]
            assert len({shape[2:] for shape in shapes}) > 1


def test_more_shapes_than_a_byte_can_name_are_refused(url):
    with pytest.raises(UserError, match="makes 363 shapes, 256 at most"):
        make_buckets(url, load_manifest(url), BucketsConfig(image_size=512, multiple=1))


def test_models_take_batches_that_are_not_square():
    settings = {"channels": 8, "channel_multipliers": (1, 2), "num_res_blocks": 1, "norm_groups": 4}
    model = Autoencoder(AutoencoderConfig(**settings, latent_channels=3, embedding_dim=3, resolution=24))
    latents = model.encode_raw(torch.zeros(2, 3, 16, 32))
    assert latents.shape == (2, 3, 8, 16)
    unet = UNet(UNetConfig(latent_channels=3, channels=32, channel_multipliers=(1, 2), num_res_blocks=1,
                           attention_factors=(1, 2), head_dim=16, context_dim=8, num_groups=8))  # fmt: skip
    assert unet(latents, torch.zeros(2), torch.zeros(2, 5, 8)).shape == latents.shape
