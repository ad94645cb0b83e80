"""The registry on a real MLflow store: one package is one version, files prove themselves, promoters race safely."""

import json
import shutil
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import export
from pipeline.checkpoint.package import Package, load_package, package_digest, save_package
from pipeline.command_line import run_program
from pipeline.config import UserError
from pipeline.data.shards import Manifest, ShardRecord
from pipeline.tracking.gates import GateConfig
from pipeline.tracking.ledger import RacedError, current, history
from pipeline.tracking.promotion import approve, promote, rollback
from pipeline.tracking.registry import Registry

if TYPE_CHECKING:
    from mlflow import MlflowClient

LINEAGE = {
    "run": "toy",
    "stage": "autoencoder",
    "data_url": "x",
    "data_digest": "d" * 64,
    "config_digest": "c" * 64,
    "git_commit": "a" * 40,
    "samples_seen": 8,
}
FREE = GateConfig()


@pytest.fixture
def registry(client: "MlflowClient", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "cache"))
    return Registry()


def package(folder: Path, value: float = 1.0, psnr: float | None = 21.0, inner: Path | None = None) -> Package:
    picture = np.zeros((2, 2, 3), dtype=np.uint8)
    kind, stage = ("latent-unet", "diffusion") if inner else ("vq-autoencoder", "autoencoder")
    tensors = {"w": torch.full((2,), value)}
    save_package(folder, kind, tensors, {}, LINEAGE | {"stage": stage}, "", picture, inner)
    if psnr is not None:
        evaluate(folder, psnr)
    return load_package(folder)


def evaluate(folder: Path, psnr: float) -> None:
    figures = {"psnr": psnr, "ssim": 0.9, "codebook_usage": 0.9, "caption_accuracy": 0.9}
    content = {"package_digest": package_digest(folder), "metrics": figures, "protocol": {"name": "p1"}}
    (folder / "evaluation.json").write_text(json.dumps(content))


def tessera(*words: str) -> int:
    return run_program("tessera", "", {"registry": "", "export": ""}, "pipeline.commands", words)


def test_register_find_fetch(registry: Registry, tmp_path: Path) -> None:
    model = package(tmp_path / "m")
    version = registry.register(model.folder)
    assert (version.ref, version.aliases, version.digest) == ("models:/vq-autoencoder/1", ("candidate",), model.digest)
    assert version.tags["data_digest"] == "d" * 64 and float(version.tags["metric.psnr"]) == 21.0
    for ref in ("models:/vq-autoencoder@candidate", "models:/vq-autoencoder/1", "vq-autoencoder/v1", "vq-autoencoder"):
        assert registry.find(ref) == version
    folder = registry.fetch(version)
    assert load_package(folder).digest == model.digest and folder == registry.fetch(version)
    assert (folder / "preview.png").is_file() and (folder / "MODEL_CARD.md").is_file()
    assert export.resolve("models:/vq-autoencoder@candidate") == folder


def test_the_same_package_is_the_same_version_and_takes_a_new_evaluation(registry: Registry, tmp_path: Path) -> None:
    model = package(tmp_path / "m", psnr=None)
    assert registry.register(model.folder).evaluation is None
    evaluate(model.folder, 22.0)
    again = registry.register(model.folder)
    assert again.number == 1 and again.evaluation is not None and again.evaluation["metrics"]["psnr"] == 22.0
    other = registry.register(package(tmp_path / "other", 2.0).folder)
    assert other.number == 2 and other.aliases == ("candidate",)
    assert registry.register(model.folder, "mine").ref == "models:/mine/1"
    assert registry.names() == ["mine", "vq-autoencoder"]


def test_wrong_references_name_what_is_near(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is none yet"):
        registry.find("vq-autoencoder")
    registry.register(package(tmp_path / "m").folder)
    for ref, words in {
        "vq-autoencodr": "did you mean vq-autoencoder",
        "models:/vq-autoencoder/7": "newest versions are 1",
        "models:/vq-autoencoder@champion": "has @candidate",
        "models:/a/b/c": "is written models:/NAME@ALIAS",
    }.items():
        with pytest.raises(UserError, match=words):
            registry.find(ref)
    with pytest.raises(UserError, match="letters, digits"):
        registry.register(tmp_path / "m", "a/b")


def test_exchanged_files_are_found(registry: Registry, tmp_path: Path) -> None:
    version = registry.register(package(tmp_path / "m").folder)
    registry.verify(version)
    stored = Path(version.source.removeprefix("file://"))
    shutil.rmtree(stored)
    shutil.copytree(package(tmp_path / "other", 2.0).folder, stored)
    with pytest.raises(UserError, match="damaged or exchanged"):
        registry.verify(version)
    with pytest.raises(UserError, match="damaged or exchanged"):
        registry.fetch(version)
    assert tessera("registry", "verify", "vq-autoencoder") == 1


def test_deleting_the_training_run_leaves_the_model(client: "MlflowClient", registry: Registry, tmp_path: Path) -> None:
    training = client.create_run(client.create_experiment("tessera"), tags={"tessera.run_uid": "u1"}).info.run_id
    folder = tmp_path / "m"
    lineage = LINEAGE | {"run_uid": "u1"}
    save_package(folder, "vq-autoencoder", {"w": torch.ones(1)}, {}, lineage, "", None)
    version = registry.register(folder)
    run = client.get_run(client.get_model_version(version.name, str(version.number)).run_id)
    assert run.data.tags["mlflow.parentRunId"] == training
    client.delete_run(training)
    registry.verify(version)


def test_promotion_rollback_history(registry: Registry, tmp_path: Path) -> None:
    one, two = (registry.register(package(tmp_path / str(i), float(i)).folder) for i in (1, 2))
    assert promote(registry, one, FREE).passed
    assert promote(registry, two, FREE).champion is not None
    assert registry.find("vq-autoencoder@champion").number == 2
    assert registry.find("vq-autoencoder@previous").number == 1
    assert current(registry, "vq-autoencoder", "candidate") is None
    assert rollback(registry, "vq-autoencoder").number == 1
    assert registry.find("vq-autoencoder@previous").number == 2
    moves = [(move.action, move.before, move.version) for move in history(registry, "vq-autoencoder")]
    assert moves == [("promote", None, 1), ("promote", 1, 2), ("rollback", 2, 1)]
    assert registry.names() == ["vq-autoencoder"]


@pytest.mark.parametrize("setting", range(3))
def test_a_promoter_killed_between_any_two_requests(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: int
) -> None:
    """The old or the new champion is there, never none; the next one who moves something ends what was begun."""
    one, two = (registry.register(package(tmp_path / str(i), float(i)).folder) for i in (1, 2))
    promote(registry, one, FREE)
    genuine, calls = registry.client.set_registered_model_alias, []

    def dies(*words: str) -> None:
        if len(calls) == setting:
            raise KeyboardInterrupt
        calls.append(words)
        genuine(*words)

    with monkeypatch.context() as patch:
        patch.setattr(registry.client, "set_registered_model_alias", dies)
        if setting < 2:
            with pytest.raises(KeyboardInterrupt):
                promote(registry, two, FREE)
        else:
            promote(registry, two, FREE)
    assert registry.find("vq-autoencoder@champion").number == (1 if setting < 2 else 2)
    assert rollback(registry, "vq-autoencoder").number == 1
    assert [move.version for move in history(registry, "vq-autoencoder")] == [1, 2, 1]
    assert registry.find("vq-autoencoder@previous").number == 2


def test_an_alias_moved_by_hand_stays_until_the_next_promotion(registry: Registry, tmp_path: Path) -> None:
    one, two, three = (registry.register(package(tmp_path / str(i), float(i)).folder) for i in (1, 2, 3))
    promote(registry, one, FREE)
    registry.client.set_registered_model_alias("vq-autoencoder", "champion", "3")
    champion = promote(registry, two, FREE).champion
    assert champion is not None and champion.number == three.number
    assert registry.find("vq-autoencoder@previous").number == 3


def test_nothing_to_roll_back_to(registry: Registry, tmp_path: Path) -> None:
    promote(registry, registry.register(package(tmp_path / "m").folder), FREE)
    with pytest.raises(UserError, match="nothing to go back to"):
        rollback(registry, "vq-autoencoder")


def test_a_refusal_changes_nothing_but_is_written_down(registry: Registry, tmp_path: Path) -> None:
    version = registry.register(package(tmp_path / "m", psnr=None).folder)
    assert not promote(registry, version, FREE).passed
    again = registry.find(version.ref)
    assert again.aliases == ("candidate",) and history(registry, "vq-autoencoder") == []
    assert not json.loads(again.tags["gates"])["passed"]


def test_approval_by_a_person(registry: Registry, tmp_path: Path) -> None:
    asks = GateConfig(approval=True)
    version = registry.register(package(tmp_path / "m").folder)
    assert [v.gate for v in promote(registry, version, asks).verdicts if not v.passed] == ["approval"]
    assert promote(registry, approve(registry, version), asks).passed


def test_a_unet_of_an_unregistered_autoencoder_is_refused(registry: Registry, tmp_path: Path) -> None:
    first = package(tmp_path / "first")
    second = registry.register(package(tmp_path / "second", inner=first.folder).folder)
    (verdict,) = [v for v in promote(registry, second, FREE).verdicts if not v.passed]
    assert verdict.gate == "autoencoder"
    registry.register(first.folder)
    assert promote(registry, second, FREE).passed
    third = registry.register(package(tmp_path / "third", 3.0, inner=first.folder).folder)
    assert third.tags["autoencoder_version"] == "models:/vq-autoencoder/1"


def test_a_version_of_another_program_is_not_loaded(registry: Registry) -> None:
    registry.client.create_registered_model("other")
    registry.client.create_model_version("other", "file:///nowhere")
    with pytest.raises(UserError, match="not registered by Tessera"):
        registry.fetch(registry.find("other/1"))


def test_of_two_decisions_on_one_state_the_second_loses(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (registry.register(package(tmp_path / str(i), float(i)).folder) for i in (1, 2))
    genuine, calls = registry.verify, []

    def somebody_is_faster(version: Any) -> None:
        genuine(version)
        calls.append(version)
        if len(calls) == 1:
            promote(registry, two, FREE)

    monkeypatch.setattr(registry, "verify", somebody_is_faster)
    with pytest.raises(RacedError, match="champion to version 2"):
        promote(registry, one, FREE)
    assert registry.find("vq-autoencoder@champion").number == 2
    assert [move.version for move in history(registry, "vq-autoencoder")] == [2]


def test_racing_promoters_have_one_winner_each_time(registry: Registry, tmp_path: Path) -> None:
    versions = [registry.register(package(tmp_path / str(i), float(i)).folder) for i in range(3)]
    for _ in range(3):
        before = len(history(registry, "vq-autoencoder"))
        barrier, won = threading.Barrier(len(versions)), []

        def race(version: Any, barrier: threading.Barrier = barrier, won: list[int] = won) -> None:
            own = Registry()
            genuine = own.verify
            own.verify = lambda v: (genuine(v), barrier.wait())[0]  # type: ignore[method-assign]
            try:
                promote(own, version, FREE)
                won.append(version.number)
            except RacedError:
                pass

        threads = [threading.Thread(target=race, args=(version,)) for version in versions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        moves = history(registry, "vq-autoencoder")
        assert len(won) == 1 and len(moves) == before + 1
        assert moves[-1].version == won[0] == registry.find("vq-autoencoder@champion").number


def test_two_who_register_at_once_share_a_version(registry: Registry, tmp_path: Path) -> None:
    model = package(tmp_path / "m")
    registry.register(package(tmp_path / "other", 2.0).folder)
    barrier, numbers = threading.Barrier(2), []

    def register() -> None:
        own = Registry()
        genuine = own._create
        own._create = lambda *words: (barrier.wait(), genuine(*words))[1]  # type: ignore[method-assign]
        numbers.append(own.register(model.folder).number)

    threads = [threading.Thread(target=register) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(numbers)) == 1
    assert len([v for v in registry.versions("vq-autoencoder") if v.digest == model.digest]) == 1


def test_commands(registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gates = str(tmp_path / "gates.yaml")
    (tmp_path / "gates.yaml").write_text("vq-autoencoder: {metrics: {psnr: {min: 20}}}")
    first = package(tmp_path / "first", psnr=10.0)
    assert tessera("registry", "register", str(first.folder)) == 0
    assert tessera("registry", "promote", "vq-autoencoder", "--gates", gates) == 1
    out = capsys.readouterr().out
    assert "psnr" in out and ">= 20" in out and "FAILED" in out and "refused" in out
    evaluate(first.folder, 25.0)
    assert tessera("registry", "register", str(first.folder), "--json") == 0
    assert json.loads(capsys.readouterr().out)["number"] == 1
    assert tessera("registry", "promote", "vq-autoencoder", "--gates", gates, "--dry-run") == 0
    assert "would be champion" in capsys.readouterr().out
    assert registry.find("vq-autoencoder@candidate").tags["gate.psnr"] == "FAILED: 10, asked for >= 20"
    assert tessera("registry", "promote", "vq-autoencoder", "1", "--gates", gates) == 0
    assert "is champion now" in capsys.readouterr().out
    second = package(tmp_path / "second", inner=first.folder)
    assert tessera("registry", "register", str(second.folder)) == 0
    assert tessera("registry", "list") == 0
    assert "latent-unet" in capsys.readouterr().out
    assert tessera("registry", "show", "latent-unet") == 0
    out = capsys.readouterr().out
    assert "models:/vq-autoencoder/1 @champion" in out and "data dddddddddddd" in out
    assert tessera("registry", "show", "vq-autoencoder", "--json") == 0
    assert json.loads(capsys.readouterr().out)["history"][0]["action"] == "promote"
    assert tessera("registry", "verify", "vq-autoencoder") == 0
    assert tessera("registry", "rollback", "vq-autoencoder") == 2
    assert "nothing to go back to" in capsys.readouterr().err
    assert tessera("export", "models:/vq-autoencoder@champion", "--out", str(tmp_path / "out"), "--json") == 0
    assert json.loads(capsys.readouterr().out)["digest"] == load_package(tmp_path / "out").digest
    assert tessera("export", str(first.folder), "--out", str(tmp_path / "out")) == 2


def drawn(folder: Path, colour: int, width: int, **config: Any) -> Package:
    picture = np.full((8, width, 3), (colour, 0, 0), dtype=np.uint8)
    save_package(folder, "vq-autoencoder", {"w": torch.ones(1)}, config, LINEAGE | {"run": folder.name}, "", picture)
    evaluate(folder, float(colour))
    return load_package(folder)


def test_differences(registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, colour, width in (("a", 10, 160), ("b", 20, 140)):
        registry.register(drawn(tmp_path / folder, colour, width, model={"channels": colour}).folder)
    words = ("registry", "diff", "vq-autoencoder/1", "vq-autoencoder/2", "--out", str(tmp_path / "both.png"))
    assert tessera(*words, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["config"] == ["model.channels: 10 -> 20"] and found["lineage"] == ["run: 'a' -> 'b'"]
    assert ["psnr", 10.0, 20.0] in found["metrics"] and found["protocol"] == []
    sheet = np.asarray(Image.open(tmp_path / "both.png"))
    assert [(sheet == (colour, 0, 0)).all(axis=-1).sum() for colour in (10, 20)] == [8 * 160, 8 * 140]
    assert tessera(*words[:-2]) == 0
    out = capsys.readouterr().out
    assert "model.channels: 10 -> 20" in out and "psnr" in out


def test_every_file_is_hashed(registry: Registry, tmp_path: Path) -> None:
    version = registry.register(package(tmp_path / "m").folder)
    stored = Path(version.source.removeprefix("file://"))
    for name in ("lineage.json", "preview.png", "code.zip", "MLmodel"):
        genuine = (stored / name).read_bytes()
        (stored / name).write_bytes(genuine + b" ")
        with pytest.raises(UserError, match=f"damaged or exchanged: {name}"):
            registry.verify(version)
        (stored / name).write_bytes(genuine)
    (stored / "sneaked.py").write_text("")
    with pytest.raises(UserError, match=r"damaged or exchanged: sneaked.py"):
        registry.verify(version)
    (stored / "sneaked.py").unlink()
    registry.verify(version)
    assert subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=stored, check=False).returncode == 0


def test_shown_down_to_the_shards(
    registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = tuple(ShardRecord(f"{i:05d}.tar", 10, 100, f"{i}" * 64) for i in range(6))
    manifest = Manifest("images", shards)
    (tmp_path / "shards").mkdir()
    manifest.save(str(tmp_path / "shards"))
    monkeypatch.setitem(LINEAGE, "data_url", str(tmp_path / "shards"))
    for folder, digest in (("m", manifest.digest), ("stale", "e" * 64)):
        monkeypatch.setitem(LINEAGE, "data_digest", digest)
        registry.register(package(tmp_path / folder, float(len(folder))).folder)
    (tmp_path / "shards" / "manifest.json").unlink()
    assert tessera("registry", "show", "vq-autoencoder/1") == 0
    out = capsys.readouterr().out
    assert "60 samples" in out and "00003.tar 333333333333, 10 samples" in out and "and 2 more shards" in out
    assert tessera("registry", "show", "vq-autoencoder/2") == 0
    assert "out of reach" in capsys.readouterr().out


def test_copied_to_another_server(
    registry: Registry, tmp_path: Path, empty_database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    version = registry.register(package(tmp_path / "m").folder)
    assert promote(registry, version, FREE).passed
    shutil.copyfile(empty_database, tmp_path / "other.db")
    other = f"sqlite:///{tmp_path}/other.db"
    for _ in range(2):
        assert tessera("registry", "copy", "vq-autoencoder@champion", "--to", other) == 0
    assert "verified there" in capsys.readouterr().out
    (copied,) = Registry(other).versions("vq-autoencoder")
    assert (copied.digest, copied.files_digest) == (version.digest, version.files_digest)
    assert copied.evaluation == version.evaluation and copied.aliases == ("candidate",)
    assert "gates" not in copied.tags and copied.tags["copied_from"].endswith(version.ref)
    stored = Path(Registry(other).client.get_run(copied.run_id).info.artifact_uri.removeprefix("file://"))
    (stored / "package" / "preview.png").write_bytes(b"x")
    assert tessera("registry", "copy", "vq-autoencoder", "--to", other) == 2
    assert "damaged or exchanged: preview.png" in capsys.readouterr().err
    assert tessera("registry", "copy", "vq-autoencoder", "--to", registry.uri) == 2
