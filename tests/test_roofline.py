"""What the MFU is a share of: peaks by name, FLOPs by phase, and the figure in a real run's journal."""

from pathlib import Path

import pytest
import torch

from pipeline.config import UserError
from pipeline.data.dataset import DataConfig
from pipeline.experiment import load_experiment
from pipeline.pace import Pace, TrainState
from pipeline.plan.estimate import GPUS
from pipeline.roofline import GPU_NAMES, peak_by_name, peak_flops, peak_of_phases, step_parts
from pipeline.tracking.journal import read_events
from tests.runs import ROOT, drawn_shards, run

CPU = torch.device("cpu")


def test_peaks() -> None:
    assert peak_by_name("NVIDIA A100-SXM4-80GB", bf16=True) == 312e12
    assert peak_by_name("NVIDIA H200", bf16=False) == 67e12
    assert peak_by_name("NVIDIA H100 PCIe", bf16=True) is None, "slower than the form in the table"
    assert set(GPU_NAMES.values()) == set(GPUS)
    assert peak_flops(CPU, True, None) is None and peak_flops(CPU, True, 2.5) == 2.5e12
    with pytest.raises(UserError, match="peak_tflops"):
        load_experiment(ROOT / "configs/autoencoder/debug.yaml", ["process.peak_tflops=0"])


def test_each_phase_has_its_own() -> None:
    stage = load_experiment(ROOT / "configs/autoencoder/debug.yaml").stage
    small, large = (DataConfig(train="x", order="stream", image_size=size) for size in (32, 64))
    peak = peak_of_phases(stage, False, None, [(small, 100), (large, 50)], 1e12)
    assert peak(0) == peak(99) and peak(100) == peak(10_000)
    assert peak(0) == 1e12 / sum(part.flops for part in step_parts(stage, 32, False, None, None))
    assert 3.9 < peak(0) / peak(100) < 4.1, "four times the pixels; the discriminator's edges differ a little"


def test_counting_draws_no_random_number() -> None:
    before = torch.get_rng_state()
    step_parts(load_experiment(ROOT / "configs/autoencoder/debug.yaml").stage, 32, False, None, None)
    assert torch.equal(before, torch.get_rng_state())


def test_a_lap_measures_by_the_phase_in_which_it_began() -> None:
    pace = Pace(100, TrainState(40, 2), 0.0, peak=lambda samples_seen: 1.0 if samples_seen < 40 else 8.0)
    metrics = pace.lap(TrainState(60, 3))
    assert metrics["mfu"] == metrics["images_per_second"] / 8 and "communication_share" not in metrics
    assert f"MFU {metrics['mfu']:.0%}" in pace.line(TrainState(60, 3), metrics)
    pace.exchange.share = 0.25
    metrics = pace.lap(TrainState(80, 4))
    assert "communication 25%" in pace.line(TrainState(80, 4), metrics)


def test_a_run_whose_peak_is_told(tmp_path: Path) -> None:
    drawn_shards(tmp_path, 32)
    words = ["run=run", "data.train=train", "data.validation=train", "trainer.total_samples=96"]
    words += ["trainer.batch_size=32", "trainer.log_every_steps=1", "process.peak_tflops=0.1"]
    said = run(tmp_path, "pipeline", "train", str(ROOT / "configs/autoencoder/debug.yaml"), *words)
    laps = [event.body["values"] for event in read_events(tmp_path / "run") if event.kind == "metrics"]
    stage = load_experiment(ROOT / "configs/autoencoder/debug.yaml").stage
    flops = sum(part.flops for part in step_parts(stage, 32, False, None, None))
    shares = [(lap["mfu"], lap["images_per_second"] * flops / 1e11) for lap in laps if "mfu" in lap]
    assert len(shares) == 3 and all(share == pytest.approx(expected) for share, expected in shares)
    assert "MFU" in said
