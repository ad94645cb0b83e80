"""Figures of a machine: of this one, of GPUs as nvidia-smi tells them, and a sampler that ends with its trainer."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.tracking.system import read_system, sample

SMI = """#!/bin/sh
[ "$1" = "--query-gpu=index,utilization.gpu,memory.used,memory.total,power.draw" ] || exit 9
echo "0, 87, 65536, 81559, 412.50"
echo "1, 0, 3, 81559, [N/A]"
"""
TRAINER = """
import sys, time
from pipeline.tracking.system import start_sampler
print(start_sampler(sys.argv[1]).pid, flush=True)
time.sleep(100)
"""


def test_this_machine() -> None:
    values = sample()
    assert 0 <= values["cpu_utilization_percentage"] <= 100
    assert 0 < values["system_memory_usage_megabytes"] < psutil.virtual_memory().total / 1e6


def test_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia-smi").write_text(SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    values = {name: value for name, value in sample().items() if name.startswith("gpu")}
    assert values == {
        "gpu_0_utilization_percentage": 87.0,
        "gpu_0_memory_usage_megabytes": 65536.0,
        "gpu_0_memory_total_megabytes": 81559.0,
        "gpu_0_power_usage_watts": 412.5,
        "gpu_1_utilization_percentage": 0.0,
        "gpu_1_memory_usage_megabytes": 3.0,
        "gpu_1_memory_total_megabytes": 81559.0,
    }


def test_the_sampler_of_another_machine_ends_with_its_trainer(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    trainer = subprocess.Popen([sys.executable, "-c", TRAINER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None
    sampler = psutil.Process(int(trainer.stdout.readline()))
    while not list(read_system(tmp_path, {})):
        assert sampler.is_running() and sampler.status() != psutil.STATUS_ZOMBIE
        time.sleep(0.1)
    trainer.send_signal(signal.SIGKILL)
    trainer.wait()
    sampler.wait(timeout=60)
    ((_, end, _, values),) = read_system(tmp_path, {})
    assert values["cpu_utilization_percentage"] >= 0
    assert end > 0
