"""Pixels to model numbers and back without loss."""

import torch

from pipeline.data.transforms import to_model, to_uint8


def test_all_levels_survive():
    levels = torch.arange(256, dtype=torch.uint8)
    values = to_model(levels)
    assert (values.dtype, values.min(), values.max()) == (torch.float32, -1.0, 1.0)
    assert torch.equal(to_uint8(values), levels)


def test_rounding_is_to_the_nearest_and_the_ends_are_clamped():
    step = 1 / 127.5
    assert to_uint8(torch.tensor([-2.0, -1 + 0.49 * step, -1 + 0.51 * step, 2.0])).tolist() == [0, 0, 1, 255]
