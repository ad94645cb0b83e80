"""The newest good generation becomes a folder that stands alone; any way to name a model leads to one."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from pipeline.checkpoint.package import load_package
from pipeline.checkpoint.store import CheckpointStore
from pipeline.config import UserError
from pipeline.distributed.ema_profile import exponent_of
from pipeline.distributed.fragments import Fragment, Reader
from pipeline.distributed.process import Process, finish, start
from pipeline.export import export_run, resolve
from pipeline.tracking.journal import Journal
from tests.checkpoint.saving import save_now


class Part:
    """A checkpoint part with the given tensors, each a (field, name, value)."""

    def __init__(self, *tensors: tuple[Any, str, torch.Tensor]) -> None:
        self.tensors = tensors

    def fragments(self) -> list[Fragment]:
        return [Fragment(name, field, tuple(t.shape), 0, t.flatten()) for field, name, t in self.tensors]

    def scalars(self) -> dict[str, Any]:
        return {}

    def restore(self, reader: Reader) -> None:
        raise AssertionError("an export restores nothing")


@pytest.fixture(scope="module")
def process() -> Any:
    yield start()
    finish()


def parts(value: float, ema: bool = True) -> dict[str, Part]:
    weights = Part(("param", "w", torch.full((2, 2), value)), ("buffer", "latent_std", torch.ones(2)))
    average = {"ema": Part(("ema", "w", torch.full((2, 2), -value)))} if ema else {}
    return {"autoencoder": weights, **average}


def make_run(folder: Path, stage: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"run": str(folder), "stage": stage | {"ema": {"decay": 0.99}}}))
    lineage = {"run": folder.name, "stage": stage["kind"], "data_url": "s3://me:pw@store/x", "data_digest": "d" * 64}
    (folder / "lineage.json").write_text(json.dumps(lineage | {"config_digest": "c" * 64}))
    return folder


def autoencoder_run(folder: Path, process: Process, ema: bool = True) -> Path:
    run = make_run(folder, {"kind": "autoencoder", "model": {"channels": 8, "channel_multipliers": [1, 2]}})
    journal = Journal(run)
    journal.metrics({"validation_psnr": 20.0}, 1, 8)
    Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save(run / "preview.png")
    journal.picture("preview", run / "preview.png", 8)
    save_now(CheckpointStore(run / "checkpoints", process), {"samples_seen": 8}, parts(1.0, ema))
    return run


def test_export_of_an_autoencoder(tmp_path: Path, process: Process) -> None:
    run = autoencoder_run(tmp_path / "first", process)
    package = load_package(export_run(run))
    assert package.kind == "vq-autoencoder" and package.config == {"channels": 8, "channel_multipliers": [1, 2]}
    tensors = package.tensors()
    assert torch.equal(tensors["w"], torch.full((2, 2), -1.0)) and torch.equal(tensors["latent_std"], torch.ones(2))
    assert package.lineage["samples_seen"] == 8 and package.lineage["run_uid"]
    card = (package.folder / "MODEL_CARD.md").read_text()
    assert (
        "divided by 2" in card and "validation_psnr | 20" in card and "averaged over training with decay 0.99" in card
    )
    assert (package.folder / "preview.png").is_file()
    assert b"me:pw" not in b"".join(p.read_bytes() for p in package.folder.iterdir())


def test_without_an_average_the_weights_as_trained(tmp_path: Path, process: Process) -> None:
    run = autoencoder_run(tmp_path / "first", process, ema=False)
    package = load_package(export_run(run))
    assert torch.equal(package.tensors()["w"], torch.full((2, 2), 1.0))
    assert "as trained" in (package.folder / "MODEL_CARD.md").read_text()


def test_the_same_generation_is_exported_once_and_a_new_one_anew(tmp_path: Path, process: Process) -> None:
    run = autoencoder_run(tmp_path / "first", process)
    first = export_run(run)
    written = (first / "model.safetensors").stat().st_mtime_ns
    assert export_run(run) == first and (first / "model.safetensors").stat().st_mtime_ns == written
    save_now(CheckpointStore(run / "checkpoints", process), {"samples_seen": 16}, parts(2.0))
    second = export_run(run)
    assert second != first and load_package(second).lineage["samples_seen"] == 16


def test_another_generation_of_the_same_number_replaces_the_export(tmp_path: Path, process: Process) -> None:
    run = autoencoder_run(tmp_path / "first", process)
    old = load_package(export_run(run)).digest
    shutil.rmtree(run / "checkpoints")
    save_now(CheckpointStore(run / "checkpoints", process), {"samples_seen": 8}, parts(3.0))
    assert load_package(export_run(run)).digest != old


def test_a_damaged_generation_is_not_exported(tmp_path: Path, process: Process) -> None:
    run = autoencoder_run(tmp_path / "first", process)
    save_now(CheckpointStore(run / "checkpoints", process), {"samples_seen": 16}, parts(2.0))
    (newest,) = (run / "checkpoints" / "gen-000002").glob("*.safetensors")
    newest.write_bytes(newest.read_bytes()[:-1])
    assert load_package(export_run(run)).lineage["samples_seen"] == 8


def test_export_of_a_unet_brings_its_autoencoder(tmp_path: Path, process: Process) -> None:
    first = autoencoder_run(tmp_path / "first", process)
    run = make_run(tmp_path / "second", {"kind": "diffusion", "unet": {"channels": 4}})
    shutil.copytree(export_run(first), run / "autoencoder")
    unet = {"unet": Part(("param", "u", torch.ones(3))), "unet_ema": Part(("ema", "u", torch.zeros(3)))}
    save_now(CheckpointStore(run / "checkpoints", process), {"samples_seen": 8}, unet)
    package = load_package(export_run(run))
    assert package.kind == "latent-unet" and package.config["unet"] == {"channels": 4}
    assert package.autoencoder is not None
    assert package.lineage["autoencoder_digest"] == package.autoencoder.digest
    assert torch.equal(package.tensors()["u"], torch.zeros(3))


def test_resolve(tmp_path: Path, process: Process) -> None:
    run = autoencoder_run(tmp_path / "first", process)
    folder = resolve(run)
    assert folder == export_run(run) and resolve(str(folder)) == folder


def test_resolve_names_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "shapes").mkdir()
    with pytest.raises(UserError, match="did you mean .*shapes"):
        resolve(tmp_path / "shaps")
    with pytest.raises(UserError, match="neither a run folder"):
        resolve(tmp_path / "shapes")
    with pytest.raises(UserError, match="exported folder or models:/NAME"):
        resolve("nowhere/at/all")


def test_a_run_without_checkpoint(tmp_path: Path) -> None:
    run = make_run(tmp_path / "first", {"kind": "autoencoder", "model": {}})
    (run / "checkpoints").mkdir()
    with pytest.raises(UserError, match="train first"):
        resolve(run)


class Track(Part):
    """A power-function average after a number of updates."""

    def __init__(self, value: float, num_updates: int, width: float) -> None:
        super().__init__(("ema", "w", torch.full((2, 2), value)))
        self.num_updates, self.width = num_updates, width

    def scalars(self) -> dict[str, Any]:
        return {"num_updates": self.num_updates, "exponent": exponent_of(self.width)}


def test_another_width_of_the_average_is_an_export_of_its_own(tmp_path: Path, process: Process) -> None:
    run = autoencoder_run(tmp_path / "first", process)
    for step in (100, 200):
        tracks = {f"ema_{width}": Track(5.0, step, width) for width in (0.05, 0.1)}
        save_now(CheckpointStore(run / "checkpoints", process, keep=3), {"samples_seen": step}, parts(1.0) | tracks)
    stored, rebuilt = load_package(export_run(run)), load_package(export_run(run, ema_width=0.07))
    assert rebuilt.folder.name == "gen-000003-ema-0.07" and rebuilt.digest != stored.digest
    torch.testing.assert_close(rebuilt.tensors()["w"], torch.full((2, 2), 5.0))  # of weights that do not move
    assert "relative width 0.07" in (rebuilt.folder / "MODEL_CARD.md").read_text()
    with pytest.raises(UserError, match="ema-width 0.4"):
        export_run(run, ema_width=0.4)
