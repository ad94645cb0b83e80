"""`tessera export --format`: the folders open in the other project's own code, or say why there are none."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from pipeline.__main__ import ABOUT, COMMANDS
from pipeline.checkpoint.package import AUTOENCODER_KIND, save_package
from pipeline.command_line import run_program
from pipeline.models.autoencoder import Autoencoder, AutoencoderConfig
from pipeline.models.convert import from_compvis
from pipeline.quantizers.gradient import GradientCodebookConfig
from pipeline.torchvision_shim import declare_missing_operators

SHAPE = AutoencoderConfig(
    channels=32,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    latent_channels=4,
    embedding_dim=3,
    resolution=16,
    quantizer=GradientCodebookConfig(num_codes=16, cosine=False),
)


def packaged(folder: Path, shape: AutoencoderConfig = SHAPE) -> Autoencoder:
    model = Autoencoder(shape, seed=1).eval()
    model.quantize.embedding.weight.data.normal_(generator=torch.Generator().manual_seed(1))
    model.latent_mean.fill_(0.5)
    save_package(folder, AUTOENCODER_KIND, model.state_dict(), shape.model_dump(mode="json"), {}, "card")
    return model


def export(folder: Path, form: str) -> int:
    argv = ["export", str(folder / "own"), "--out", str(folder / "theirs"), "--format", form]
    return run_program("tessera", ABOUT, COMMANDS, "pipeline.commands", argv)


def pictures() -> torch.Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1


def test_diffusers_opens_the_folder(tmp_path: Path) -> None:
    model = packaged(tmp_path / "own")
    assert export(tmp_path, "diffusers") == 0
    declare_missing_operators()
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    theirs = diffusers.VQModel.from_pretrained(tmp_path / "theirs").eval()
    with torch.no_grad():
        assert torch.allclose(theirs(pictures()).sample, model(pictures()).images, atol=1e-5)
    statistics = json.loads((tmp_path / "theirs" / "latent_statistics.json").read_text())
    assert statistics == {"mean": [0.5] * 3, "std": [1.0] * 3}


def test_a_compvis_checkpoint_holds_tensors_alone_and_comes_back(tmp_path: Path) -> None:
    model = packaged(tmp_path / "own")
    assert export(tmp_path, "compvis") == 0
    state = torch.load(tmp_path / "theirs" / "model.ckpt", weights_only=True)["state_dict"]
    fresh = Autoencoder(SHAPE, seed=2).eval()
    fresh.load_state_dict(from_compvis(state), strict=False)
    assert torch.equal(fresh(pictures()).images, model(pictures()).images)
    params = yaml.safe_load((tmp_path / "theirs" / "config.yaml").read_text())["model"]["params"]
    assert params["embed_dim"] == 3 and params["ddconfig"]["ch_mult"] == [1, 2]


def test_what_a_format_cannot_say_is_refused_and_leaves_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packaged(tmp_path / "own", SHAPE.model_copy(update={"norm_groups": 8}))
    assert export(tmp_path, "compvis") == 2
    assert "norm_groups is 8" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["own"]
