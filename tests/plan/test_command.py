"""`tessera plan` from the command line: figures as text and JSON, and wrong use in one line."""

import json
from pathlib import Path

import pytest

from pipeline import __main__ as tessera
from pipeline.data.shards import Manifest, ShardRecord

FIRST = """
run: {folder}/first
data: {{train: {folder}/shards, validation: {folder}/shards, image_size: 32}}
stage:
  kind: autoencoder
  model: {{channels: 8, channel_multipliers: [1, 2], num_res_blocks: 1, mid_attention: false, norm_groups: 4,
          latent_channels: 4, embedding_dim: 4, resolution: 32, quantizer: {{kind: ema, num_codes: 64}}}}
  reconstruction: {{perceptual_weight: 0}}
optim: {{}}
trainer: {{total_samples: 64000, batch_size: 64, checkpoint_every_samples: 64, keep_checkpoints: 2}}
"""
SECOND = """
run: {folder}/second
autoencoder: {folder}/first.yaml
data: {{train: {folder}/shards, image_size: 32}}
stage:
  kind: diffusion
  unet: {{channels: 16, channel_multipliers: [1], num_res_blocks: 1, head_dim: 8, context_dim: 16, num_groups: 8}}
  text: {{kind: trainable, width: 16, num_layers: 1, num_heads: 2}}
  preview_prompts: [a circle]
optim: {{}}
trainer: {{total_samples: 64000, batch_size: 64, checkpoint_every_samples: 64}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "first.yaml").write_text(FIRST.format(folder=tmp_path))
    (tmp_path / "second.yaml").write_text(SECOND.format(folder=tmp_path))
    return tmp_path


def plan(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> int:
    monkeypatch.setattr("sys.argv", ["tessera", "plan", *map(str, words)])
    return tessera.main()


def test_first_stage(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "shards").mkdir()
    Manifest("images", (ShardRecord("00000.tar", 1000, 5_000_000, "0" * 64),)).save(str(folder / "shards"))
    assert plan(monkeypatch, folder / "first.yaml", "--gpus", "2", "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    weights = figures["parts"][0]["num_trained"]
    assert figures["storage"] == {"data": 5_000_000, "latents": 1000 * 4 * 16 * 16 * 4, "checkpoints": 3 * 16 * weights}
    assert figures["world"]["num_gpus"] == 2 and set(figures["memory"]) == {"0", "1", "2", "3"}


def test_second_stage_before_the_first_is_trained(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(monkeypatch, folder / "second.yaml", "--price", "2") == 0
    printed = capsys.readouterr()
    assert "unet " in printed.out and "parameters frozen" in printed.out and "at 2 each" in printed.out
    assert printed.err == f"tessera plan: no manifest at {folder}/shards: planning without its sizes\n"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--gpu", "h101"], "--gpu h101: not known"),
        (["--gpus", "3"], "--gpus 3: must divide trainer.batch_size=64"),
        (["autoencoder={folder}/second.yaml"], "name the first stage's config"),
        (["autoencoder={folder}/none"], "none"),
    ],
)
def test_wrong_use(
    words: list[str],
    complaint: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert plan(monkeypatch, folder / "second.yaml", *(word.format(folder=folder) for word in words)) == 2
    assert complaint in capsys.readouterr().err
