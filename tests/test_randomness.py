"""Draws depend on (seed, purpose, epoch, sample) alone, and are what they claim to be distributed as."""

import numpy as np
import torch

from pipeline.randomness import Draws, Purpose, philox_key


def test_a_sample_draws_the_same_in_any_batch() -> None:
    draws = Draws(seed=7)
    whole = draws.normal(Purpose.NOISE, [2] * 8, range(8), (4, 3, 3))
    for split in (1, 2, 4):
        parts = [draws.normal(Purpose.NOISE, [2] * split, range(i, i + split), (4, 3, 3)) for i in range(0, 8, split)]
        assert torch.equal(torch.cat(parts), whole)


def test_seed_purpose_epoch_and_sample_each_change_the_draw() -> None:
    base = Draws(0).uniform(Purpose.NOISE, [0], [0], 4)
    others = [
        Draws(1).uniform(Purpose.NOISE, [0], [0], 4),
        Draws(0).uniform(Purpose.CROP, [0], [0], 4),
        Draws(0).uniform(Purpose.NOISE, [1], [0], 4),
        Draws(0).uniform(Purpose.NOISE, [0], [1], 4),
    ]
    assert all(not np.isclose(base, other).any() for other in others)


def test_a_longer_draw_begins_with_the_shorter_one() -> None:
    draws = Draws(3)
    assert np.array_equal(draws.bits(Purpose.CROP, [0], [9], 8)[:, :3], draws.bits(Purpose.CROP, [0], [9], 3))


def test_the_stream_is_the_same_on_every_machine() -> None:
    """Golden words, made once with numpy 2.4 from Philox-4x64 at key blake2b("0/noise"), counter (0, 0, 1, 2)."""
    assert philox_key(0, "noise").tolist() == GOLDEN_KEY
    assert Draws(0).bits(Purpose.NOISE, [1], [2], 2).tolist() == [GOLDEN_WORDS]


def test_moments_of_the_draws() -> None:
    draws = Draws(11)
    normal = draws.normal(Purpose.NOISE, [0] * 2000, range(2000), (50,)).double()
    assert abs(normal.mean()) < 0.012  # 4 sigma of the mean of 100,000 draws
    assert abs(normal.std() - 1) < 0.01
    assert abs((normal**4).mean() - 3) < 0.12
    across_samples = torch.corrcoef(normal.T[:2])[0, 1]
    assert abs(across_samples) < 0.1
    uniform = draws.uniform(Purpose.TIMESTEP, [0] * 20000, range(20000))
    assert uniform.min() >= 0 and uniform.max() < 1
    counts = np.histogram(uniform, bins=10, range=(0, 1))[0]
    assert ((counts - 2000) ** 2 / 2000).sum() < 30  # chi-square with 9 degrees of freedom, p < 0.0005


def test_odd_shapes_and_empty_batches() -> None:
    assert Draws(0).normal(Purpose.NOISE, [0], [0], (3,)).shape == (1, 3)
    assert Draws(0).normal(Purpose.NOISE, [], [], (3,)).shape == (0, 3)


GOLDEN_KEY = [5356080978081994028, 13889679759661800807]
GOLDEN_WORDS = [17723863590276435849, 13140317839382687420]
