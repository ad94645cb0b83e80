"""Real runs for tests: small drawn datasets, and console commands in processes of their own that can be killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from pipeline.tracking.journal import read_events

ROOT = Path(__file__).parents[1]


def environment(folder: Path) -> dict[str, str]:
    """Variables of a process that works in `folder`: this code, one thread, a tracking database of its own."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "MLFLOW_TRACKING_URI": "sqlite:///runs/mlflow.db",
    }


def start(folder: Path, *words: str, variables: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """`python -m WORDS` in `folder`, its output captured as one text; `variables` replace the usual environment."""
    command = [sys.executable, "-m", *words]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=variables or environment(folder),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # so that a kill of the group takes its children along
    )


def run(folder: Path, *words: str, code: int = 0, variables: dict[str, str] | None = None) -> str:
    """The output of `python -m WORDS` in `folder`, which must end with exit code `code`."""
    process = start(folder, *words, variables=variables)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == code, f"{words}: exit code {process.returncode}, expected {code}\n{output}"
    return output


def kill_after_step(process: subprocess.Popen[str], run_dir: Path, step: int) -> None:
    """SIGKILL the trainer of `run_dir` as soon as its journal holds `step`."""
    deadline = time.monotonic() + 600
    while max(losses(run_dir), default=0) < step:
        assert process.poll() is None, f"ended by itself:\n{process.communicate()[0]}"
        assert time.monotonic() < deadline, f"no step {step} in {run_dir}"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()


def losses(run_dir: Path) -> dict[int, dict[str, float]]:
    """Every number that the journal holds of each step, but those about speed."""
    by_step: dict[int, dict[str, float]] = {}
    for event in read_events(run_dir):
        if event.kind == "metrics":
            values = {k: v for k, v in event.body["values"].items() if k not in SPEED}
            by_step.setdefault(event.body["step"], {}).update(values)
    return by_step


SPEED = (
    *("steps_per_second", "images_per_second", "data_stall_share", "checkpoint_stall_share", "ettr"),
    *("memory_peak_gib", "communication_share", "mfu", "unreadable_samples"),
)


def drawn_shards(folder: Path, num: int, split: str = "train", image_size: int = 32) -> Path:
    """A dataset of `num` drawn shapes, made by the tools themselves (in this process, without a pool)."""
    from PIL import Image

    from data_tools.shard import ShardConfig, WorkConfig, shard_dataset
    from data_tools.sources.open import open_source
    from pipeline.data.shapes import captions_of, draw_shape

    pictures = folder / f"{split}-pictures"
    pictures.mkdir(parents=True)
    for i in range(num):
        image, caption = draw_shape(5, i, image_size, captions_of(split))
        Image.fromarray(image).save(pictures / f"{i:05d}.png")
        (pictures / f"{i:05d}.txt").write_text(caption)
    out = folder / split
    shard_dataset(open_source(str(pictures)), "pictures", str(out), ShardConfig(resize="none"), WorkConfig())
    return out
