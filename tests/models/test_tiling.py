"""Tiles: exact where the network is local, near the whole where it is not, and bounded in memory."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import UserError
from pipeline.models.autoencoder import Autoencoder
from pipeline.models.autoencoder.tiling import tiled
from tests.formula import formula
from tests.small_models import small_autoencoder

CONFIG = small_autoencoder(norm_groups=1, resolution=64)


@pytest.mark.parametrize(("height", "width"), [(40, 24), (16, 64), (17, 33), (16, 16)])
def test_what_is_local_is_exact(height: int, width: int) -> None:
    x = formula((2, 3, height, width))
    assert torch.allclose(tiled(lambda part: part * 2, x, 16, 1, 1), 2 * x, atol=1e-6)
    grown = tiled(lambda part: F.interpolate(part, scale_factor=4), x, 16, 1, 4)
    assert torch.allclose(grown, F.interpolate(x, scale_factor=4), atol=1e-6)


def test_what_is_halved_begins_where_the_whole_does() -> None:
    x = formula((1, 2, 40, 56))
    assert torch.allclose(tiled(lambda part: F.avg_pool2d(part, 4), x, 16, 4, 0.25), F.avg_pool2d(x, 4), atol=1e-6)


def test_no_tile_is_larger_than_its_side() -> None:
    sides: list[tuple[int, ...]] = []

    def run(part: Tensor) -> Tensor:
        sides.append(tuple(part.shape[2:]))
        return part

    tiled(run, torch.zeros(1, 1, 100, 30), 16, 4, 1)
    assert max(max(side) for side in sides) == 16 and len(sides) == 8 * 3


def test_without_what_looks_at_the_whole_it_is_exact_but_at_the_seams() -> None:
    model = Autoencoder(CONFIG, seed=0).eval().requires_grad_(False)
    for module in [*model.modules()]:
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())
    x = formula((1, 3, 128, 128))
    whole, latent = model.decode_raw(formula((1, 4, 64, 64), 1)), model.encode_raw(x)
    model.take_in_tiles(64)
    alone = slice(0, 32)  # what the first tile alone gives, and farther from its edge than the network looks
    tiles = model.decode_raw(formula((1, 4, 64, 64), 1))
    assert torch.allclose(tiles[..., alone, alone], whole[..., alone, alone], atol=1e-5)
    assert torch.allclose(model.encode_raw(x)[..., :16, :16], latent[..., :16, :16], atol=1e-5)
    assert not torch.allclose(tiles, whole, atol=1e-5)


def test_a_tiled_autoencoder_is_near_the_whole_one_and_exact_within_one_tile() -> None:
    model = Autoencoder(CONFIG, seed=0).eval().requires_grad_(False)
    images = formula((1, 3, 128, 128))
    whole, codes = model.reconstruct(images)
    latent = model.encode_raw(images)
    model.take_in_tiles(64)
    assert (model.encode_raw(images) - latent).abs().mean() < 0.05 * latent.std()
    assert (model.decode_raw(latent) - whole).abs().mean() < 0.1 * whole.std()  # each normalises what it sees
    model.take_in_tiles(128)
    assert torch.equal(model.reconstruct(images)[0], whole) and torch.equal(model.reconstruct(images)[1], codes)


def test_a_side_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(UserError, match="tile 33: take a multiple of 2, such as 64"):
        Autoencoder(CONFIG).take_in_tiles(33)


def test_compiled_levels_compute_the_same_under_the_same_names() -> None:
    plain, compiled = Autoencoder(CONFIG, seed=0), Autoencoder(CONFIG, seed=0)
    compiled.compile_levels(backend="eager")
    assert list(plain.state_dict()) == list(compiled.state_dict())
    x = formula((1, 3, 16, 16))
    first, second = plain(x), compiled(x)
    assert torch.allclose(first.images, second.images, atol=1e-6)
    first.images.sum().backward()
    second.images.sum().backward()
    for a, b in zip(plain.parameters(), compiled.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-5)
