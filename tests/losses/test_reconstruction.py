"""Terms of the reconstruction loss, and what the perceptual one refuses."""

import shutil
from pathlib import Path

import pytest
import torch

from pipeline.config import UserError, parse_config
from pipeline.losses.perceptual import PerceptualDistance
from pipeline.losses.reconstruction import ReconstructionConfig, ReconstructionLoss, edge_error
from pipeline.torchvision_shim import declare_missing_operators


def test_terms_are_weighted_means_and_absent_at_weight_zero() -> None:
    loss = ReconstructionLoss(ReconstructionConfig(l1_weight=2.0, l2_weight=0.5, perceptual_weight=0))
    terms = loss(torch.full((2, 3, 4, 4), 0.5), torch.zeros(2, 3, 4, 4))
    assert {name: value.item() for name, value in terms.items()} == {"l1_loss": 1.0, "l2_loss": 0.125}
    only_l1 = ReconstructionLoss(ReconstructionConfig(perceptual_weight=0))
    assert set(only_l1(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))) == {"l1_loss"}


def test_edges_ignore_brightness_and_count_differences_of_neighbours() -> None:
    images = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    restored = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(1))
    down = (restored[:, :, 1:] - restored[:, :, :-1]) - (images[:, :, 1:] - images[:, :, :-1])
    across = (restored[..., 1:] - restored[..., :-1]) - (images[..., 1:] - images[..., :-1])
    assert torch.allclose(edge_error(restored, images), (down**2).mean() + (across**2).mean())
    assert edge_error(images + 0.5, images) < 1e-12


def test_a_perceptual_loss_takes_torch_s_cache_or_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vgg_file: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    config = parse_config({}, ReconstructionConfig, source="x.yaml")
    with pytest.raises(UserError, match="vgg16-397923af.pth: no such file.*or set the weight to 0"):
        ReconstructionLoss(config)
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    shutil.copyfile(vgg_file, cache / "vgg16-397923af.pth")
    terms = ReconstructionLoss(config)(*pictures())
    assert terms["perceptual_loss"] > 0


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vgg16.pth: no such file"):
        PerceptualDistance(tmp_path / "vgg16.pth")


def test_no_term_at_all_is_refused() -> None:
    with pytest.raises(UserError, match="are all 0"):
        parse_config({"l1_weight": 0, "perceptual_weight": 0}, ReconstructionConfig, source="x.yaml")


@pytest.fixture(scope="module")
def lpips_package() -> None:
    """Skips where the package is not installed."""
    declare_missing_operators()
    pytest.importorskip("lpips", reason="the package lpips is not installed", exc_type=ImportError)


@pytest.fixture(scope="module")
def vgg_file(lpips_package: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VGG16 with seeded weights in place of the trained ones."""
    from torchvision.models import vgg16

    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save({name: value for name, value in vgg16().state_dict().items() if name.startswith("features.")}, file)
    return file


@pytest.fixture(scope="module")
def distance(vgg_file: Path) -> PerceptualDistance:
    return PerceptualDistance(vgg_file)


def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    a, b = torch.rand(2, 2, 3, 32, 32, generator=generator) * 2 - 1
    return a, b


def test_equals_the_package_s_own_distance(distance: PerceptualDistance) -> None:
    a, b = pictures()
    assert torch.allclose(distance(a, b), distance.model(a, b).flatten(), rtol=1e-4)
    assert torch.equal(distance(a, a), torch.zeros(2))


def test_low_precision_is_close_and_comes_back_in_float32(distance: PerceptualDistance) -> None:
    exact = distance(*pictures())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = distance(*pictures())
    assert rounded.dtype == torch.float32
    assert torch.allclose(rounded, exact, rtol=0.05)


def test_stays_in_eval_mode_and_frozen_inside_a_training_parent(distance: PerceptualDistance) -> None:
    parent = torch.nn.Sequential(distance).train()
    assert not any(module.training for module in parent[0].modules())
    assert not any(parameter.requires_grad for parameter in distance.parameters())
    assert torch.equal(distance(*pictures()), distance(*pictures()))


@pytest.mark.parametrize("value", [0.0, 1.0, -0.088])
def test_constant_pictures_have_a_finite_gradient(distance: PerceptualDistance, value: float) -> None:
    restored = torch.full((1, 3, 32, 32), value, requires_grad=True)
    distance(restored, torch.zeros(1, 3, 32, 32)).sum().backward()
    assert restored.grad.isfinite().all()


def test_the_reconstruction_gets_its_gradient(distance: PerceptualDistance) -> None:
    a, b = pictures()
    distance(a.requires_grad_(), b).sum().backward()
    assert a.grad is not None and a.grad.isfinite().all() and (a.grad != 0).float().mean() > 0.9


def test_pictures_outside_the_range_are_an_error_of_ours(distance: PerceptualDistance) -> None:
    with pytest.raises(RuntimeError, match=r"\[-1, 1\]"):
        distance(torch.zeros(1, 3, 32, 32), torch.full((1, 3, 32, 32), 255.0))


def test_weights_of_another_network_are_refused(lpips_package: None, tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="not VGG16"):
        PerceptualDistance(tmp_path / "other.pth")
