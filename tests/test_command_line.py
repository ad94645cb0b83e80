"""The console program: exit codes, near names, and a help that imports nothing heavy."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import __main__ as tessera
from pipeline.command_line import parse, run_program


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    folder = tmp_path / "toy_commands"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    for name, body in {
        "good": "return args.number",
        "wrong": "raise UserError('number 3: too small; give 4 or more')",
        "stopped": "raise KeyboardInterrupt",
        "broken": "assert 1 == 2",
    }.items():
        (folder / f"{name}.py").write_text(
            f"'''The {name} command.'''\nfrom pipeline.config import UserError\n"
            "def configure(parser): parser.add_argument('--number', type=int, default=0)\n"
            f"def run(args):\n    {body}\n"
        )
    monkeypatch.syspath_prepend(str(tmp_path))
    return {name: f"the {name} one" for name in ("good", "wrong", "stopped", "broken")}


def test_exit_codes(commands: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    def run(*argv: str) -> int:
        return run_program("toy", "A toy.", commands, "toy_commands", argv)

    assert (run("good"), run("good", "--number", "1"), run("wrong"), run("stopped")) == (0, 1, 2, 130)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["toy: number 3: too small; give 4 or more", "toy: interrupted; the same command goes on from here"]
    assert run("goood") == 2
    assert "did you mean good?" in capsys.readouterr().err
    assert run() == 2 and run("--help") == 0
    assert "the wrong one" in capsys.readouterr().out


def test_only_a_users_mistake_is_swallowed(commands: dict[str, str]) -> None:
    with pytest.raises(AssertionError):
        run_program("toy", "A toy.", commands, "toy_commands", ["broken"])


@pytest.mark.parametrize("name", sorted(tessera.COMMANDS))
def test_every_command_helps_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run_program("tessera", tessera.ABOUT, tessera.COMMANDS, "pipeline.commands", [name, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert f"tessera {name}" in text.partition("Example")[2], "the help shows an example of the command"


def test_help_imports_nothing_heavy() -> None:
    probe = (
        "import sys; sys.argv = ['tessera', '--help']; from pipeline.__main__ import main; main(); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'mlflow', 'deepspeed', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", probe], stdout=subprocess.DEVNULL, check=False).returncode == 0


def test_overrides_may_follow_options(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--number", type=int)
    args = parse(parser, ["a.yaml", "b=1", "--number", "2", "c.d=3"])
    assert (args.config, args.overrides, args.number) == ("a.yaml", ["b=1", "c.d=3"], 2)
    for word in ("--numbr=3", "stray"):
        with pytest.raises(SystemExit):
            parse(parser, ["a.yaml", "--number", "2", word])
        assert word in capsys.readouterr().err
