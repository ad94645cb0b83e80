"""`tessera registry` as a user types it, on a real MLflow store."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.checkpoint.package import load_package
from pipeline.commands.registry import MODULES
from pipeline.data.shards import Manifest, ShardRecord
from pipeline.tracking.promotion import promote
from pipeline.tracking.registration import register
from pipeline.tracking.registry import Registry
from tests.source import ROOT
from tests.tracking.packages import FREE, evaluate, package, tessera


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


def test_differences(registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run, colour in (("a", 10), ("b", 20)):
        config = {"model": {"channels": colour}}
        register(registry, package(tmp_path / run, colour, psnr=colour, config=config, run=run).folder)
    words = ("registry", "diff", "vq-autoencoder/1", "vq-autoencoder/2", "--out", str(tmp_path / "both.png"))
    assert tessera(*words, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["config"] == ["model.channels: 10 -> 20"] and found["lineage"] == ["run: 'a' -> 'b'"]
    assert ["psnr", 10.0, 20.0] in found["metrics"] and found["protocol"] == []
    sheet = np.asarray(Image.open(tmp_path / "both.png"))
    for colour in (10, 20):  # magnified; the letters have a few pixels of these greys too
        assert 0 <= (sheet == colour).all(axis=-1).sum() - 128 * 128 < 100
    assert tessera(*words[:-2]) == 0
    out = capsys.readouterr().out
    assert "model.channels: 10 -> 20" in out and "psnr" in out


def test_shown_down_to_the_shards(registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = tuple(ShardRecord(f"{i:05d}.tar", 10, 100, f"{i}" * 64) for i in range(6))
    manifest = Manifest("images", shards)
    (tmp_path / "shards").mkdir()
    manifest.save(str(tmp_path / "shards"))
    data = {"data_url": str(tmp_path / "shards"), "selection_digest": "f" * 64}
    for folder, digest in (("m", manifest.digest), ("stale", "e" * 64)):
        register(registry, package(tmp_path / folder, float(len(folder)), data_digest=digest, **data).folder)
    (tmp_path / "shards" / "manifest.json").unlink()
    assert tessera("registry", "show", "vq-autoencoder/1") == 0
    out = capsys.readouterr().out
    assert "only the samples of selection ffffffffffff" in out
    assert "60 samples" in out and "00003.tar 333333333333, 10 samples" in out and "and 2 more shards" in out
    assert tessera("registry", "show", "vq-autoencoder/2") == 0
    assert "out of reach" in capsys.readouterr().out


def test_copied_to_another_server(
    registry: Registry, tmp_path: Path, empty_database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    version = register(registry, package(tmp_path / "m").folder)
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


@pytest.mark.parametrize("verb", MODULES)
def test_every_verb_has_an_example_and_speaks_json(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        tessera("registry", verb, "--help")
    said = capsys.readouterr().out
    assert f"Example:\n    tessera registry {verb}" in said and "--json" in said


def test_neither_torch_nor_mlflow_comes_with_the_code() -> None:
    """They take seconds; MLflow is imported when a server is asked, torch when weights are read."""
    names = ", ".join(f"pipeline.commands.registry.{module}" for module in {*MODULES.values()})
    program = f"import sys, {names}; sys.exit('torch' in sys.modules or 'mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
