"""The files of a version prove themselves: whatever was damaged, exchanged, added or lost is found and named."""

import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.config import UserError
from pipeline.tracking.download import fetch, verify
from pipeline.tracking.registration import register
from pipeline.tracking.registry import Registry
from tests.tracking.packages import package, tessera


def test_exchanged_files_are_found(registry: Registry, tmp_path: Path) -> None:
    version = register(registry, package(tmp_path / "m").folder)
    verify(registry, version)
    stored = Path(version.source.removeprefix("file://"))
    shutil.rmtree(stored)
    shutil.copytree(package(tmp_path / "other", 2.0).folder, stored)
    with pytest.raises(UserError, match="damaged or exchanged"):
        verify(registry, version)
    with pytest.raises(UserError, match="damaged or exchanged"):
        fetch(registry, version)
    assert tessera("registry", "verify", "vq-autoencoder") == 1


def test_every_file_is_hashed(registry: Registry, tmp_path: Path) -> None:
    version = register(registry, package(tmp_path / "m").folder)
    stored = Path(version.source.removeprefix("file://"))
    for name in ("lineage.json", "preview.png", "code.zip", "MLmodel"):
        genuine = (stored / name).read_bytes()
        (stored / name).write_bytes(genuine + b" ")
        with pytest.raises(UserError, match=f"damaged or exchanged: {name}"):
            verify(registry, version)
        (stored / name).write_bytes(genuine)
    (stored / "sneaked.py").write_text("")
    with pytest.raises(UserError, match=r"damaged or exchanged: sneaked.py"):
        verify(registry, version)
    (stored / "sneaked.py").unlink()
    verify(registry, version)
    assert subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=stored, check=False).returncode == 0


def test_a_version_of_another_program_is_not_loaded(registry: Registry) -> None:
    registry.client.create_registered_model("other")
    registry.client.create_model_version("other", "file:///nowhere")
    with pytest.raises(UserError, match="not registered by Tessera"):
        fetch(registry, registry.find("other/1"))
