"""Journals as a training writes them, and what a tracking server has of the one run that was shipped to it."""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.tracking.journal import Journal

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


def start(run: Path, **params: object) -> Journal:
    journal = Journal(run)
    journal.params({"optim": {"learning_rate": 0.1, **params}, "data": {"train": "s3://me:hunter2@store/train"}})
    return journal


def train(journal: Journal, begin: int, end: int, value: float = 1.0, commit: bool = True) -> None:
    for samples in range(begin, end + 1):
        journal.metrics({"loss": value * samples}, step=samples, samples_seen=samples)
    if commit:
        journal.committed(end, end)


def the_run(client: "MlflowClient") -> "Run":
    (run,) = client.search_runs([client.get_experiment_by_name("tessera").experiment_id])
    return run


def losses(client: "MlflowClient") -> dict[int, float]:
    history = client.get_metric_history(the_run(client).info.run_id, "loss")
    assert len({metric.step for metric in history}) == len(history)
    return {metric.step: metric.value for metric in history}
