"""Discriminators: bounded by nothing, each picture by itself; frozen features stay frozen and out of the checkpoint."""

from pathlib import Path

import pytest
import torch

from pipeline.config import UserError
from pipeline.losses.perceptual import network
from pipeline.models.discriminator import (
    AnyDiscriminatorConfig,
    DiscriminatorConfig,
    FeatureDiscriminator,
    FeatureDiscriminatorConfig,
    ResidualDiscriminatorConfig,
    build_discriminator,
)
from tests.formula import formula, save_vgg16

KINDS = [
    DiscriminatorConfig(channels=8, num_layers=2),
    ResidualDiscriminatorConfig(channels=4, num_blocks=2),
    FeatureDiscriminatorConfig(channels=8),
]


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vgg16(tmp_path_factory.mktemp("vgg") / "vgg16.pth")


@pytest.mark.parametrize("config", KINDS, ids=lambda config: config.kind)
def test_a_logit_depends_on_its_own_picture_alone(config: AnyDiscriminatorConfig, vgg_file: Path) -> None:
    critic = build_discriminator(config, seed=1)
    if isinstance(critic, FeatureDiscriminator):
        critic.trunk.load(vgg_file)
    images = formula((3, 3, 32, 32))
    together = critic(images)
    assert together.ndim == 4 and together.shape[:2] == (3, 1)
    assert torch.allclose(together[1:2], critic(images[1:2]), rtol=1e-4, atol=1e-5)
    again = build_discriminator(config, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(critic.parameters(), again.parameters(), strict=True))
    with torch.no_grad():
        for last in list(critic.parameters())[-2:]:
            last.mul_(1e4)
    assert critic(images).abs().max() > 100  # nothing that saturates stands behind the last layer


def test_frozen_features_are_those_of_lpips_and_out_of_the_checkpoint(vgg_file: Path) -> None:
    critic = FeatureDiscriminator(FeatureDiscriminatorConfig(channels=8, file=vgg_file))
    critic.load_features()
    assert all(name.startswith("heads.") for name in critic.state_dict())
    lpips = network()
    for part in (lpips.net.slice1, lpips.net.slice2, lpips.net.slice3, lpips.net.slice4, lpips.net.slice5):
        part.load_state_dict({name: torch.load(vgg_file)[f"features.{name}"] for name in part.state_dict()})
    images = formula((1, 3, 32, 32)).requires_grad_()
    theirs = lpips.net(lpips.scaling_layer(images))[1:]
    for ours, expected in zip(critic.trunk(images), theirs, strict=True):
        assert torch.allclose(ours, expected, rtol=1e-3, atol=1e-4)
    critic(images).sum().backward()
    assert images.grad is not None and images.grad.abs().max() > 0
    assert all(part.grad is not None for part in critic.parameters())


def test_missing_and_other_features_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match="vgg16-397923af.pth: no such file; put torchvision's VGG16 there"):
        FeatureDiscriminator(FeatureDiscriminatorConfig()).load_features()
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="not torchvision's VGG16"):
        FeatureDiscriminator(FeatureDiscriminatorConfig(file=tmp_path / "other.pth")).load_features()
