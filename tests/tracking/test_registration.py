"""Registration on a real MLflow store: one package is one version, and a reference finds it or names what is near."""

import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from pipeline import export
from pipeline.checkpoint.package import Package, load_package, save_package
from pipeline.config import UserError
from pipeline.tracking import registration
from pipeline.tracking.download import fetch, verify
from pipeline.tracking.registration import register
from pipeline.tracking.registry import Registry
from pipeline.tracking.version import Version
from tests.tracking.packages import LINEAGE, evaluate, package

if TYPE_CHECKING:
    from mlflow import MlflowClient


def test_register_find_fetch(registry: Registry, tmp_path: Path) -> None:
    model = package(tmp_path / "m")
    version = register(registry, model.folder)
    assert (version.ref, version.aliases, version.digest) == ("models:/vq-autoencoder/1", ("candidate",), model.digest)
    assert version.tags["data_digest"] == "d" * 64 and float(version.tags["metric.psnr"]) == 21.0
    for ref in ("models:/vq-autoencoder@candidate", "models:/vq-autoencoder/1", "vq-autoencoder/v1", "vq-autoencoder"):
        assert registry.find(ref) == version
    folder = fetch(registry, version)
    assert load_package(folder).digest == model.digest and folder == fetch(registry, version)
    assert (folder / "preview.png").is_file() and (folder / "MODEL_CARD.md").is_file()
    assert export.resolve("models:/vq-autoencoder@candidate") == folder


def test_the_same_package_is_the_same_version_and_takes_a_new_evaluation(registry: Registry, tmp_path: Path) -> None:
    model = package(tmp_path / "m", psnr=None)
    assert register(registry, model.folder).evaluation is None
    evaluate(model.folder, 22.0)
    again = register(registry, model.folder)
    assert again.number == 1 and again.evaluation is not None and again.evaluation["metrics"]["psnr"] == 22.0
    other = register(registry, package(tmp_path / "other", 2.0).folder)
    assert other.number == 2 and other.aliases == ("candidate",)
    assert register(registry, model.folder, "mine").ref == "models:/mine/1"
    assert registry.names() == ["mine", "vq-autoencoder"]


def test_wrong_references_name_what_is_near(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is none yet"):
        registry.find("vq-autoencoder")
    register(registry, package(tmp_path / "m").folder)
    for ref, words in {
        "vq-autoencodr": "did you mean vq-autoencoder",
        "models:/vq-autoencoder/7": "newest versions are 1",
        "models:/vq-autoencoder@champion": "has @candidate",
        "models:/a/b/c": "is written models:/NAME@ALIAS",
    }.items():
        with pytest.raises(UserError, match=words):
            registry.find(ref)
    with pytest.raises(UserError, match="letters, digits"):
        register(registry, tmp_path / "m", "a/b")


def test_deleting_the_training_run_leaves_the_model(client: "MlflowClient", registry: Registry, tmp_path: Path) -> None:
    training = client.create_run(client.create_experiment("tessera"), tags={"tessera.run_uid": "u1"}).info.run_id
    folder = tmp_path / "m"
    lineage = LINEAGE | {"run_uid": "u1"}
    save_package(folder, "vq-autoencoder", {"w": torch.ones(1)}, {}, lineage, "", None)
    version = register(registry, folder)
    run = client.get_run(client.get_model_version(version.name, str(version.number)).run_id)
    assert run.data.tags["mlflow.parentRunId"] == training
    client.delete_run(training)
    verify(registry, version)


def test_two_who_register_at_once_share_a_version(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = package(tmp_path / "m")
    register(registry, package(tmp_path / "other", 2.0).folder)
    barrier, numbers, genuine = threading.Barrier(2), [], registration._create

    def wait_and_create(registry: Registry, package: Package, name: str) -> Version:
        barrier.wait()
        return genuine(registry, package, name)

    monkeypatch.setattr(registration, "_create", wait_and_create)

    def run() -> None:
        numbers.append(register(Registry(), model.folder).number)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(numbers)) == 1
    assert len([v for v in registry.versions("vq-autoencoder") if v.digest == model.digest]) == 1
