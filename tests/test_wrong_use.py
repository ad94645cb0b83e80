"""Wrong use of the console programs: one line on stderr that names the value and the remedy, and exit code 2."""

from pathlib import Path

import pytest

from data_tools import __main__ as tessera_data
from pipeline import __main__ as tessera
from pipeline.command_line import run_program
from pipeline.config import UserError
from pipeline.data.dataset import DataConfig
from pipeline.data.loader import Loader
from tests.runs import ROOT, drawn_shards

DEBUG = str(ROOT / "configs" / "autoencoder" / "debug.yaml")


def refused(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    """The one line with which `words`, `tessera ...` or `tessera-data ...`, is refused."""
    program, about, commands, folder = {
        "tessera": ("tessera", tessera.ABOUT, tessera.COMMANDS, "pipeline.commands"),
        "tessera-data": ("tessera-data", tessera_data.ABOUT, tessera_data.COMMANDS, "data_tools.commands"),
    }[words[0]]
    assert run_program(program, about, commands, folder, words[1:]) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    return lines[0]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty, with a tracking database of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs/mlflow.db")
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (f"tessera train {DEBUG} stage.model.chanels=3", "stage.model.chanels: unknown; did you mean channels?"),
        (f"tessera train {DEBUG} trainer.batch_size=0", "trainer.batch_size: Input should be greater than 0 (got 0)"),
        ("tessera train configs/nowhere.yaml", "configs/nowhere.yaml: no such config file"),
        (f"tessera train {DEBUG} data.train=nowhere", "nowhere/manifest.json: not found"),
        (f"tessera train {DEBUG} autoencoder=runs/x", "an autoencoder stage does not"),
        ("tessera evaluate --model nowhere --data empty", "nowhere: no such folder"),
        ("tessera evaluate --model nowhere --data empty --batch-size 0", "--batch-size 0: take more than 0"),
        ("tessera evaluate --model nowhere --data empty --num-samples -3", "--num-samples -3: take more than 0"),
        ("tessera doctor --data empty --world-size 0", "--world-size 0, --seconds 2: take more than 0"),
        (f"tessera train {DEBUG} stage.kind=autoencodr", "stage.kind: autoencodr is none of autoencoder, diffusion"),
        (f"tessera train {DEBUG} run=@mine", "'run=@mine': the value is not valid YAML"),
        ("tessera sample --model models:/painter@champion star --out a.png", "painter: no such registered model"),
        ("tessera sample --model nowhere star --out a.png --strength 0.5", "give --init-image"),
        ("tessera sample --model nowhere star --out a.png --outpaint 8", "give --init-image"),
        ("tessera sample --model nowhere star --out a.png --num 0", "--num 0: give at least 1"),
        ("tessera sample --model nowhere star --out a.png --size -64", "--size -64: give at least 1"),
        ("tessera registry promote vq-autoencoder", "vq-autoencoder: no such registered model"),
        ("tessera registry register empty", "empty: neither a run folder"),
        ("tessera export empty --out somewhere", "empty: neither a run folder"),
        ("tessera-data shard nowhere --out out", "nowhere"),
        ("tessera-data shard empty --out out --resize none", "empty: no pictures here"),
        ("tessera-data validate empty", "empty/manifest.json: not found"),
        ("tessera-data report empty --out a.html", "empty/manifest.json: not found"),
        ("tessera-data precompute --model nowhere --data empty --out out", "nowhere: no such folder"),
        ("tessera-data darw shapes", "darw: no such command; did you mean draw?"),
    ],
)
def test_a_mistake_gets_one_line(place: Path, capsys: pytest.CaptureFixture[str], words: str, told: str) -> None:
    line = refused(capsys, words.split())
    assert told in line
    assert not (place / "runs" / "debug").exists(), "nothing was begun"


def test_a_batch_that_the_ranks_do_not_divide(place: Path) -> None:
    """Checked on one rank of a world of two, before it waits for the other."""
    url = str(drawn_shards(place, 4))
    with pytest.raises(UserError, match="batch_size 15 does not divide by 2 ranks; take 14 or 16"):
        Loader(url, DataConfig(train=url), seed=0, rank=1, world_size=2, batch_size=15)


def test_pictures_that_do_not_decode_are_counted_and_the_run_goes_on(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn_shards(place, 6)
    pictures = place / "train-pictures"
    (pictures / "00003.png").write_bytes(b"not a picture")
    words = ["shard", str(pictures), "--out", "mixed", "--resize", "none", "--num-workers", "1"]
    assert run_program("tessera-data", "", tessera_data.COMMANDS, "data_tools.commands", words) == 0
    assert "5 samples" in capsys.readouterr().out
