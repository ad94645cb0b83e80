"""Little models for the tests of the registry: two weights, a picture, a whole lineage, and figures if asked for."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.checkpoint.package import AUTOENCODER_KIND, UNET_KIND, Package, load_package, package_digest, save_package
from pipeline.command_line import run_program
from pipeline.tracking import promotion
from pipeline.tracking.download import verify
from pipeline.tracking.gates import GateConfig
from pipeline.tracking.ledger import RacedError
from pipeline.tracking.registry import Registry
from pipeline.tracking.version import Version

FREE = GateConfig()
LINEAGE = {
    "run": "toy",
    "stage": "autoencoder",
    "data_url": "x",
    "data_digest": "d" * 64,
    "config_digest": "c" * 64,
    "git_commit": "a" * 40,
    "samples_seen": 8,
}


def package(
    folder: Path,
    value: float = 1.0,
    psnr: float | None = 21.0,
    inner: Path | None = None,
    preview: bool = True,
    config: dict[str, Any] | None = None,
    **lineage: Any,
) -> Package:
    """A vq-autoencoder, or with the autoencoder `inner` a latent-unet; one `value`, one digest."""
    picture = np.full((8, 8, 3), int(value), dtype=np.uint8) if preview else None
    kind, stage = (UNET_KIND, "diffusion") if inner else (AUTOENCODER_KIND, "autoencoder")
    tensors = {"w": torch.full((2,), value)}
    save_package(folder, kind, tensors, config or {}, LINEAGE | {"stage": stage} | lineage, "# A model", picture, inner)
    if psnr is not None:
        evaluate(folder, psnr)
    return load_package(folder)


def evaluate(folder: Path, psnr: float) -> None:
    """Figures as `tessera evaluate` writes them."""
    figures = {"psnr": psnr, "ssim": 0.9, "codebook_usage": 0.9, "caption_accuracy": 0.9}
    content = {"package_digest": package_digest(folder), "metrics": figures, "protocol": {"name": "p1"}}
    (folder / "evaluation.json").write_text(json.dumps(content))


def race(monkeypatch: pytest.MonkeyPatch, versions: list[Version]) -> list[int]:
    """Promote all versions at once, each decided on the same state; the numbers of those that won."""
    barrier, won = threading.Barrier(len(versions)), []

    def verify_and_wait(registry: Registry, version: Version) -> None:
        verify(registry, version)
        barrier.wait()

    def run(version: Version) -> None:
        try:
            promotion.promote(Registry(), version, FREE)
            won.append(version.number)
        except RacedError:
            pass

    with monkeypatch.context() as patch:
        patch.setattr(promotion, "verify", verify_and_wait)
        threads = [threading.Thread(target=run, args=(version,)) for version in versions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return won


def tessera(*words: str) -> int:
    """The exit code of `tessera WORDS`, in this process."""
    return run_program("tessera", "", {"registry": "", "export": ""}, "pipeline.commands", words)
