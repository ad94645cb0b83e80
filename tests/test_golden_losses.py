"""The first 20 steps of both stages on the CPU, against stored numbers: a refactoring must not move them.

The numbers were made by this test's own `measure` with torch 2.13.0 on an x86-64 CPU, float32. Another CPU may add in
another order, hence the tolerance; a change of the objective, the data order or the draws is far outside of it.
"""

import json
from pathlib import Path

import pytest

from tests.runs import ROOT, drawn_shards, losses, run

GOLDEN = Path(__file__).with_name("golden_losses.json")
NAMES = {"autoencoder": "l1_loss", "diffusion": "diffusion_loss"}
TOLERANCE = 2e-3


def measure(folder: Path) -> dict[str, list[float]]:
    """The loss of each of 20 steps of both debug recipes, the second stage on the first."""
    drawn_shards(folder, 120)
    found = {}
    for kind, name in NAMES.items():
        words = ["run=" + kind, "data.train=train", "trainer.total_samples=320"]
        words += ["data.validation=" + ("train" if kind == "autoencoder" else "null")]  # the first measures its latents
        words += ["trainer.log_every_steps=1", "engine.precision=fp32"]
        words += ["autoencoder=autoencoder"] if kind == "diffusion" else []
        run(folder, "pipeline", "train", str(ROOT / "configs" / kind / "debug.yaml"), *words)
        found[kind] = [values[name] for _, values in sorted(losses(folder / kind).items())]
    return found


def test_twenty_steps_of_each_stage_give_the_stored_losses(tmp_path: Path) -> None:
    stored, found = json.loads(GOLDEN.read_text()), measure(tmp_path)
    for kind in NAMES:
        assert len(found[kind]) == 20
        assert found[kind] == pytest.approx(stored[kind], rel=TOLERANCE)
