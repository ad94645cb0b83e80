"""The journal survives kills, keeps floats exact, and shows each step once however often a run was resumed."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tracking.journal import Event, Journal, attempt_files, read_all_events, read_events
from pipeline.tracking.shipper import settled
from tests.source import ROOT


def losses(events: list[Event]) -> list[tuple[int, float]]:
    return [(e.samples_seen, e.body["values"]["loss"]) for e in events if e.kind == "metrics"]


@given(st.floats())
def test_floats_come_back_exact(tmp_path_factory: pytest.TempPathFactory, value: float) -> None:
    run = tmp_path_factory.mktemp("run")
    Journal(run).metrics({"x": value}, step=1, samples_seen=8)
    (event,) = [e for e in read_events(run) if e.kind == "metrics"]
    got = event.body["values"]["x"]
    assert got == value or (math.isnan(got) and math.isnan(value))


def test_lines_are_strict_json_and_take_tensors(tmp_path: Path) -> None:
    values = {"a": torch.tensor(0.1, dtype=torch.float64), "b": np.float32(0.5), "c": float("inf")}
    Journal(tmp_path).metrics(values, step=1, samples_seen=8)  # type: ignore[arg-type]
    text = (tmp_path / "journal" / "events-000.jsonl").read_text().splitlines()[-1]
    record = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert record["values"] == {"a": 0.1, "b": 0.5, "c": "inf"}


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path, enabled=False)
    journal.params({"a": 1})
    journal.ended("finished")
    assert os.listdir(tmp_path) == []


def test_opening_alone_leaves_no_attempt(tmp_path: Path) -> None:
    Journal(tmp_path)
    assert attempt_files(tmp_path) == []


def test_a_torn_last_line_is_passed_over(tmp_path: Path) -> None:
    Journal(tmp_path).metrics({"loss": 1.0}, step=1, samples_seen=8)
    with (tmp_path / "journal" / "events-000.jsonl").open("ab") as file:
        file.write(b'{"kind":"metrics","time_ms":17')
    second = Journal(tmp_path)
    second.resumed(8)
    second.metrics({"loss": 0.5}, step=2, samples_seen=16)
    assert losses(read_events(tmp_path)) == [(8, 1.0), (16, 0.5)]
    assert len({e.body["uid"] for e in read_all_events(tmp_path) if e.kind == "started"}) == 1


def test_a_failed_write_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)
    journal.metrics({"loss": 1.0}, step=1, samples_seen=8)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        journal.metrics({"loss": 2.0}, step=2, samples_seen=16)
    assert losses(read_events(tmp_path)) == [(8, 1.0)]
    journal.metrics({"loss": 3.0}, step=3, samples_seen=24)
    assert losses(read_events(tmp_path)) == [(8, 1.0), (16, 2.0), (24, 3.0)]


def test_resume_supersedes_what_was_not_committed(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    first.params({"seed": 1})
    for samples in (8, 16):
        first.metrics({"loss": float(samples)}, step=samples // 8, samples_seen=samples)
    first.committed(generation=0, samples_seen=16)
    first.metrics({"validation": 1.0}, step=2, samples_seen=16)
    first.metrics({"loss": 24.0}, step=3, samples_seen=24)
    second = Journal(tmp_path)
    second.params({"seed": 1})
    second.resumed(16)
    second.metrics({"validation": 2.0}, step=2, samples_seen=16)
    second.metrics({"loss": -24.0}, step=3, samples_seen=24)
    events = read_events(tmp_path)
    got = [(e.samples_seen, *e.body["values"].items()) for e in events if e.kind == "metrics"]
    assert got == [(8, ("loss", 8.0)), (16, ("loss", 16.0)), (16, ("validation", 2.0)), (24, ("loss", -24.0))]


def test_a_second_value_at_the_same_moment_is_dropped(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    first.metrics({"loss": 1.0}, step=1, samples_seen=8)
    first.committed(generation=0, samples_seen=8)
    second = Journal(tmp_path)
    second.resumed(8)
    second.metrics({"loss": 9.0}, step=1, samples_seen=8)
    assert losses(read_events(tmp_path)) == [(8, 1.0)]


def test_an_attempt_without_checkpoint_starts_over(tmp_path: Path) -> None:
    Journal(tmp_path).metrics({"loss": 1.0}, step=1, samples_seen=8)
    Journal(tmp_path).metrics({"loss": 2.0}, step=1, samples_seen=8)
    assert losses(read_events(tmp_path)) == [(8, 2.0)]


def test_an_attempt_that_dies_before_training_drops_nothing(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    first.metrics({"loss": 1.0}, step=1, samples_seen=8)
    first.ended("stopped")
    Journal(tmp_path).params({"seed": 1})
    events = read_events(tmp_path)
    assert losses(events) == [(8, 1.0)] and not [e for e in events if e.kind == "ended"]


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 6)), min_size=1, max_size=5))
def test_any_chain_of_resumes_reads_as_one_run(
    tmp_path_factory: pytest.TempPathFactory, chain: list[tuple[int, int]]
) -> None:
    """Attempts of random length that resume from any earlier commit: the effective run has each step once, in order."""
    run = tmp_path_factory.mktemp("run")
    end, expected = 0, []
    for attempt, (start, length) in enumerate(chain):
        journal, start = Journal(run), min(start, end)
        journal.resumed(start)
        expected = [pair for pair in expected if pair[0] <= start]
        for samples in range(start + 1, start + length + 1):
            journal.metrics({"loss": float(attempt)}, step=samples, samples_seen=samples)
            journal.committed(samples, samples)
            expected.append((samples, float(attempt)))
        end = start + length
    assert losses(read_events(run)) == expected


def test_secrets_never_reach_the_file(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.params({"data": "s3://me:hunter2@store/x", "env": {"HF_TOKEN": "hunter2"}, "max_tokens": "77"})
    journal.ended("failed", "GET https://store/x?X-Amz-Signature=hunter2 refused")
    text = (tmp_path / "journal" / "events-000.jsonl").read_text()
    assert "hunter2" not in text and "store/x" in text and '"77"' in text


def test_events_outlive_a_kill(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pipeline.tracking.journal import Journal; j = Journal(sys.argv[1]);"
        "[j.metrics({'loss': 1.0}, i, i) for i in range(1, 6)]; os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(losses(read_events(tmp_path))) == 5


def test_a_disk_that_refuses_writes_for_a_while_costs_no_event(tmp_path: Path) -> None:
    """The kernel itself refuses them: a limit on the size of files, set in the middle of training and taken away."""
    program = """
import resource, signal, sys
from pipeline.tracking.journal import Journal, attempt_files
from pipeline.tracking.shipper import settled
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = Journal(sys.argv[1])
def train(begin, end):
    for i in range(begin, end):
        journal.metrics({"loss": float(i)}, i, i)
        if i % 5 == 0:
            journal.committed(i, i)
train(1, 40)
((_, path),) = attempt_files(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 30, resource.RLIM_INFINITY))  # a line that is torn
train(40, 80)
size = path.stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
train(80, 120)
journal.ended("finished")
sys.exit(0 if path.stat().st_size > 2 * size else 1)
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, cwd=ROOT)
    events = read_events(tmp_path)
    assert losses(events) == [(i, float(i)) for i in range(1, 120)]
    assert [e.samples_seen for e in events if e.kind == "committed"] == list(range(5, 120, 5))


def test_mlflow_is_not_imported() -> None:
    program = "import sys, pipeline.tracking.journal; sys.exit('mlflow' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_steps_beside_a_save_are_not_settled_by_its_commit(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.metrics({"loss": 1.0}, 1, 10)
    journal.metrics({"loss": 2.0}, 2, 20)  # while the generation at 10 is written
    journal.committed(1, 10, stall_seconds=0.5)
    assert [e.samples_seen for e in settled(read_events(tmp_path)) if e.kind == "metrics"] == [10]
    Journal(tmp_path).resumed(10)
    assert [e.samples_seen for e in read_events(tmp_path) if e.kind == "metrics"] == [10]
    journal.ended("stopped")
    assert [e.kind for e in settled(read_events(tmp_path))].count("metrics") == 1
