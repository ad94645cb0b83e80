"""Concatenated conditions: what is hidden stays hidden, masks cover what they touch, holes are keyed on the sample."""

import numpy as np
import pytest
import torch

from pipeline.data.holes import random_holes
from pipeline.models.autoencoder import Autoencoder, AutoencoderConfig
from pipeline.models.canvas import outpainted
from pipeline.models.condition import (
    InpaintConfig,
    UpscaleConfig,
    enlarged,
    inpaint_condition,
    num_channels,
    shrunk,
    upscale_condition,
)
from pipeline.randomness import Draws


@pytest.fixture(scope="module")
def autoencoder() -> Autoencoder:
    config = AutoencoderConfig(
        channels=8, channel_multipliers=(1, 1, 1), num_res_blocks=1, norm_groups=4, embedding_dim=4, resolution=32
    )
    return Autoencoder(config.model_copy(update={"mid_attention": False, "latent_channels": 4}), seed=3).eval()


def pictures(seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_what_lies_in_the_hole_has_no_influence(autoencoder: Autoencoder) -> None:
    mask = torch.zeros(2, 1, 32, 32, dtype=torch.bool)
    mask[:, :, 7:20, 9:30] = True
    one, other = pictures(0), pictures(0)
    other[mask.expand_as(other)] = pictures(1)[mask.expand_as(other)]
    conditions = [inpaint_condition(autoencoder, images, mask) for images in (one, other)]
    assert torch.equal(*conditions)
    assert conditions[0].shape == (2, num_channels(InpaintConfig(), 4), 8, 8)
    assert conditions[0][0, 0].nonzero()[[0, -1]].tolist() == [[1, 2], [4, 7]]  # every touched latent pixel


def test_small_pictures_come_back_at_their_size(autoencoder: Autoencoder) -> None:
    small = shrunk(pictures(), 2)
    assert small.shape == (2, 3, 16, 16) and small.dtype == torch.uint8
    assert enlarged(small, 2).shape == (2, 3, 32, 32)
    condition = upscale_condition(autoencoder, small, 2)
    assert condition.shape == (2, num_channels(UpscaleConfig(), 4), 8, 8)
    flat = torch.full((1, 3, 16, 16), 77, dtype=torch.uint8)
    assert torch.equal(enlarged(shrunk(flat, 2), 2), flat)


def test_holes_depend_on_the_sample_alone_and_come_in_all_kinds() -> None:
    ids = list(range(400))
    holes = random_holes(Draws(5), [0] * 400, ids, 32, 32)
    assert holes.shape == (400, 1, 32, 32) and holes.dtype == bool
    assert np.array_equal(random_holes(Draws(5), [0], [7], 32, 32)[0], holes[7])
    assert not np.array_equal(random_holes(Draws(5), [1], [7], 32, 32)[0], holes[7])
    shares = holes.mean((1, 2, 3))
    assert (shares > 0).all()
    assert 0.05 < (shares == 1).mean() < 0.16
    corners = holes[:, 0, [0, 0, -1, -1], [0, -1, 0, -1]].all(axis=1)  # everything, or a frame
    assert 0.2 < (corners & (shares < 1)).mean() < 0.45


def test_outpainting_keeps_the_picture_in_the_middle() -> None:
    image = pictures()[0].permute(1, 2, 0).numpy()
    wide, mask = outpainted(image, 8)
    assert wide.shape == (48, 48, 3)
    assert np.array_equal(wide[~mask].reshape(32, 32, 3), image)
    assert np.array_equal(wide[0, 8:40], image[0])
