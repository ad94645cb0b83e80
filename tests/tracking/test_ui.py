"""MLflow's own pages in a real browser: a run with its curves and pictures, a model with its aliases and tags.

With TESSERA_PICTURES=FOLDER the screenshots are kept there; those of docs/pictures were made so.
"""

import math
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.shapes import captions_of, draw_shape
from pipeline.evaluate.grid import captioned_grid
from pipeline.tracking.gates import BoundConfig, GateConfig
from pipeline.tracking.journal import Journal
from pipeline.tracking.promotion import approve, promote
from pipeline.tracking.registration import register
from pipeline.tracking.registry import Registry
from pipeline.tracking.shipper import ship, shipped_run_id
from tests.tracking.browser import Browser, browser
from tests.tracking.packages import package
from tests.tracking.team_server import Postgres, TeamServer


def make_run(folder: Path) -> None:
    """A run whose loss falls, with a grid of drawn shapes after every quarter."""
    journal = Journal(folder)
    journal.params({"optim": {"learning_rate": 1e-3}, "trainer": {"batch_size": 64}})
    for step in range(1, 201):
        values = {"loss": 2 * math.exp(-step / 60) + 0.1, "validation.psnr": 30 - 12 * math.exp(-step / 50)}
        journal.metrics(values, step, step * 64)
        if step % 50 == 0:
            pictures, captions = zip(
                *(draw_shape(0, step + i, 32, captions_of("train")) for i in range(4)), strict=True
            )
            path = folder / "samples" / f"{step}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(captioned_grid(np.stack(pictures), captions)).save(path)
            journal.picture("preview", path, step * 64)
            journal.committed(step // 50, step * 64)
    journal.ended("finished")


def keep(window: Browser, name: str) -> None:
    folder = os.environ.get("TESSERA_PICTURES")
    if folder:
        window.photograph(Path(folder) / f"{name}.png")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_pages(team: tuple[TeamServer, Postgres], here: Path) -> None:
    make_run(here / "shapes")
    assert ship(here / "shapes")
    registry = Registry()
    gates = GateConfig(metrics={"psnr": BoundConfig(min=20.0)}, approval=True)
    for value in (1.0, 2.0):
        version = register(registry, package(here / f"m{value}", value, psnr=20 + value).folder, "shapes-vq")
        assert promote(registry, approve(registry, version), gates).passed
    register(registry, package(here / "m3", 3.0).folder, "shapes-vq")
    experiment = registry.client.get_experiment_by_name("tessera")
    page = f"{team[0].uri}/#/experiments/{experiment.experiment_id}/runs/{shipped_run_id(here / 'shapes')}"
    says = "document.body.innerText.includes"
    with browser(here / "chromium") as window:
        window.open(page, f"{says}('validation.psnr') && {says}('Finished')")
        assert "tessera.run_uid" in window.text() or "learning_rate" in window.text()
        keep(window, "mlflow-run")
        window.open(
            f"{page}/model-metrics", f"{says}('loss') && document.querySelectorAll('.js-plotly-plot').length >= 2"
        )
        window.wait("document.querySelectorAll('.js-plotly-plot .scatterlayer .trace').length >= 2")
        window.evaluate("document.querySelector('[role=slider]').focus()")
        for _ in range(4):  # to the last of the four pictures; before the first one there is none
            window.press("ArrowRight", 39)
        window.wait(
            "[...document.images].some(image => image.src.includes('step%2B12800') && image.naturalWidth > 100)"
        )
        keep(window, "mlflow-curves")
        window.open(
            f"{team[0].uri}/#/models/shapes-vq", f"{says}('champion') && {says}('previous') && {says}('candidate')"
        )
        keep(window, "mlflow-model")
        window.open(f"{team[0].uri}/#/models/shapes-vq/versions/2", f"{says}('gate.psnr') && {says}('approved_by')")
        assert "passed: 22, asked for >= 20" in window.text()
        keep(window, "mlflow-version")
