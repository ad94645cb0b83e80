"""One page with everything in it, and nothing outside of it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config import UserError
from pipeline.tracking.journal import Journal
from pipeline.tracking.report import write_report


@pytest.fixture
def run(tmp_path: Path) -> Path:
    first = Journal(tmp_path)
    first.params({"seed": 1})
    for samples in range(8, 48, 8):
        first.metrics({"diffusion_loss": 1.0 / samples, "images_per_second": 5.0}, samples // 8, samples)
    first.committed(1, 24)
    second = Journal(tmp_path)
    second.resumed(24)
    second.metrics({"diffusion_loss": float("nan"), "validation_psnr": 21.5}, 4, 32)
    (tmp_path / "samples").mkdir()
    for samples in range(1, 13):
        path = tmp_path / "samples" / f"{samples}.png"
        Image.fromarray(np.full((8, 2000, 3), samples, dtype=np.uint8)).save(path)
        second.picture("preview", path, 32 + samples)
    second.ended("failed", "diffusion_loss is nan <b>")
    (tmp_path / "config.yaml").write_text("data: {train: 's3://me:hunter2@store/x'}\n")
    (tmp_path / "lineage.json").write_text(json.dumps({"data_digest": "abc", "versions": {"torch": "2.13"}}))
    evaluation = {"metrics": {"psnr": 21.25}, "protocol": {"name": "reconstruction-1"}, "data_digest": "d" * 64}
    (tmp_path / "export" / "gen-000001").mkdir(parents=True)
    (tmp_path / "export" / "gen-000001" / "evaluation.json").write_text(json.dumps(evaluation))
    return tmp_path


def test_page(run: Path) -> None:
    text = write_report(run).read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', text) and "<script" not in text
    for word in ("diffusion_loss", "validation_psnr", "images_per_second", "21.25", "reconstruction-1", "torch 2.13"):
        assert word in text
    assert text.count("data:image/png") == 8 and "preview, 44 samples" in text and "preview, 33 samples" in text
    assert "hunter2" not in text and "failed: diffusion_loss is nan &lt;b&gt;" in text
    assert "restart" in text and "killed" in text


def test_bare_journal(tmp_path: Path) -> None:
    Journal(tmp_path).params({})
    assert "no end written" in write_report(tmp_path).read_text()


def test_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no journal"):
        write_report(tmp_path)
