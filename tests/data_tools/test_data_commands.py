"""The commands of `tessera-data` as a user calls them: exit codes, one-line errors, JSON, help with an example."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_tools import __main__ as tessera_data
from pipeline.command_line import run_program
from pipeline.data.shapes import captions_of


def run(*words: str | Path) -> int:
    arguments = [str(word) for word in words]
    return run_program("tessera-data", tessera_data.ABOUT, tessera_data.COMMANDS, "data_tools.commands", arguments)


def test_from_drawing_to_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures, shards = tmp_path / "pictures", tmp_path / "shards"
    draw = ("draw", "shapes", "--out", pictures, "--num", "12", "--size", "16", "--split", "held-out", "--json")
    assert run(*draw) == 0 and json.loads(capsys.readouterr().out)["drawn_now"] is True
    assert run(*draw) == 0 and json.loads(capsys.readouterr().out)["drawn_now"] is False
    assert {p.read_text() for p in pictures.glob("*.txt")} <= set(captions_of("held-out"))
    assert run("shard", pictures, "--out", shards, "--samples-per-shard", "5", "--num-workers", "1", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["samples"], summary["shards"], summary["failed"]) == (12, 3, 0)
    assert run("validate", shards, "--num-workers", "1") == 0
    assert "no problem found" in capsys.readouterr().out
    assert run("report", shards, "--out", tmp_path / "report.html") == 0
    (shards / "00001.tar").unlink()
    assert run("validate", shards, "--num-workers", "1") == 1, "problems are a failure"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("draw", "shapes", "--out", "x", "--num", "0"), "--num 0: nothing to draw"),
        (("draw", "shapes", "--out", "x", "--num", "5", "--size", "2"), "--size 2: too small"),
        (("draw", "emoji", "--out", "x", "--font", "no.ttf"), "no.ttf"),
        (("shard", "nowhere", "--out", "x"), "nowhere: no such folder"),
        (("shard", "nowhere", "--out", "x", "--resize", "keep_ratio"), "give a size"),
        (("shard", "nowhere", "--out", "x", "--size", "-4"), "size"),
        (("validate", "nowhere"), "manifest.json: not found"),
        (("index", "nowhere"), "no .tar here"),
    ],
)
def test_a_users_mistake_is_one_line_and_2(
    words: tuple[str, ...], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run(*words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and complaint in lines[0]
    assert not list(tmp_path.iterdir()), "nothing is left behind"


@pytest.mark.parametrize("name", sorted(tessera_data.COMMANDS))
def test_every_command_helps_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(name, "--help")
    assert stopped.value.code == 0
    assert f"tessera-data {name}" in capsys.readouterr().out.partition("Example")[2]


def test_shard_workers_import_nothing_heavy() -> None:
    """Every spawned worker pays for what the writer imports."""
    probe = "import sys, data_tools.shard_writer, data_tools.validate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0
