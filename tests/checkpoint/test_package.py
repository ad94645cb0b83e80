"""An exported folder: what goes in comes out, its digest names the content, half a folder is never seen."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.checkpoint.package import Package, load_package, package_digest, save_package
from pipeline.config import UserError


def autoencoder(folder: Path, seed: int = 0) -> Package:
    torch.manual_seed(seed)
    tensors = {"conv.weight": torch.randn(2, 3), "latent_mean": torch.zeros(2), "step": torch.tensor(7)}
    preview = np.full((4, 6, 3), 128, dtype=np.uint8)
    return save_package(folder, "vq-autoencoder", tensors, {"channels": 8}, {"run": "toy"}, "# Toy\n", preview)


def unet(folder: Path, inner: Path) -> Package:
    return save_package(folder, "latent-unet", {"w": torch.ones(2)}, {"unet": {}}, {}, "# U\n", autoencoder=inner)


def test_round_trip(tmp_path: Path) -> None:
    saved = autoencoder(tmp_path / "ae")
    package = load_package(tmp_path / "ae")
    assert (package.kind, package.config, package.lineage) == ("vq-autoencoder", {"channels": 8}, {"run": "toy"})
    assert package.digest == saved.digest and package.autoencoder is None and package.evaluation is None
    tensors = package.tensors()
    assert tensors["step"].item() == 7 and tensors["conv.weight"].dtype == torch.float32
    assert (tmp_path / "ae" / "MODEL_CARD.md").read_text() == "# Toy\n"
    assert Image.open(tmp_path / "ae" / "preview.png").size == (6, 4)
    assert os.listdir(tmp_path) == ["ae"]


def test_digest_is_what_sha256sum_says_and_leaves_out_the_evaluation(tmp_path: Path) -> None:
    package = autoencoder(tmp_path / "ae")
    (tmp_path / "ae" / "evaluation.json").write_text('{"metrics": {"psnr": 20.0}}')
    assert package_digest(tmp_path / "ae") == package.digest
    assert load_package(tmp_path / "ae").evaluation == {"metrics": {"psnr": 20.0}}
    command = "sha256sum config.yaml model.safetensors | sha256sum"
    printed = subprocess.check_output(command, shell=True, cwd=tmp_path / "ae", text=True)
    assert printed.split()[0] == package.digest


def test_same_content_same_digest_other_weights_another(tmp_path: Path) -> None:
    digests = [autoencoder(tmp_path / str(i), seed).digest for i, seed in enumerate([0, 0, 1])]
    assert digests[0] == digests[1] != digests[2]


def test_latent_unet_carries_its_autoencoder(tmp_path: Path) -> None:
    inner = autoencoder(tmp_path / "ae").digest
    package = unet(tmp_path / "unet", tmp_path / "ae")
    shutil.rmtree(tmp_path / "ae")
    again = load_package(tmp_path / "unet")
    assert again.autoencoder is not None and again.autoencoder.digest == inner
    assert again.lineage["autoencoder_digest"] == inner
    assert package.digest == again.digest


def test_digest_of_a_unet_depends_on_its_autoencoder(tmp_path: Path) -> None:
    digests = set()
    for seed in range(2):
        autoencoder(tmp_path / f"ae{seed}", seed)
        digests.add(unet(tmp_path / f"unet{seed}", tmp_path / f"ae{seed}").digest)
    assert len(digests) == 2


def test_exchanged_autoencoder_is_refused(tmp_path: Path) -> None:
    autoencoder(tmp_path / "ae0", 0)
    autoencoder(tmp_path / "ae1", 1)
    unet(tmp_path / "unet", tmp_path / "ae0")
    shutil.rmtree(tmp_path / "unet" / "autoencoder")
    shutil.copytree(tmp_path / "ae1", tmp_path / "unet" / "autoencoder")
    with pytest.raises(UserError, match="trained on autoencoder"):
        load_package(tmp_path / "unet")


def test_a_unet_is_no_autoencoder(tmp_path: Path) -> None:
    autoencoder(tmp_path / "ae")
    unet(tmp_path / "unet", tmp_path / "ae")
    with pytest.raises(UserError, match="is a latent-unet"):
        unet(tmp_path / "more", tmp_path / "unet")
    assert not (tmp_path / "more").exists()


@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors", "lineage.json"])
def test_missing_file_is_named(tmp_path: Path, name: str) -> None:
    autoencoder(tmp_path / "ae")
    (tmp_path / "ae" / name).unlink()
    with pytest.raises(UserError, match=name):
        load_package(tmp_path / "ae")


@pytest.mark.parametrize(
    "text", ["kind: [", "words", "kind: gan\nformat: 1\nconfig: {}", "kind: vq-autoencoder\nformat: 9\nconfig: {}"]
)
def test_broken_config_is_a_users_error(tmp_path: Path, text: str) -> None:
    autoencoder(tmp_path / "ae")
    (tmp_path / "ae" / "config.yaml").write_text(text)
    with pytest.raises(UserError, match="package"):
        load_package(tmp_path / "ae")


def test_a_failed_save_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AttributeError):
        save_package(tmp_path / "ae", "vq-autoencoder", {"w": None}, {}, {}, "")  # type: ignore[dict-item]
    assert os.listdir(tmp_path) == []


def test_an_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    first = autoencoder(tmp_path / "ae")
    before = hashlib.sha256((tmp_path / "ae" / "model.safetensors").read_bytes()).hexdigest()
    with pytest.raises(UserError, match="is there already"):
        autoencoder(tmp_path / "ae", seed=1)
    assert hashlib.sha256((first.folder / "model.safetensors").read_bytes()).hexdigest() == before
