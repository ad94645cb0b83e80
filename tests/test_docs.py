"""The pages say what is there: commands parse, files and make targets exist, drawn trees are the tree.

Console blocks are run and must print what the page shows; other blocks are run where `<!-- run -->` stands above them.
"""

import argparse
import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.command_line import parse
from pipeline.experiment import load_experiment
from tests.source import ROOT, modules

PAGES = [path for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")) if path.name != "CHANGELOG.md"]
PROGRAMS = {"tessera": "pipeline", "tessera-data": "data_tools", "tessera-launch": "launch"}
CONFIGS = sorted(ROOT.glob("configs/autoencoder/*.yaml")) + sorted(ROOT.glob("configs/diffusion/*.yaml"))
MAX_LINES = {"README.md": 250, "CONTRIBUTING.md": 120}
RUN_MARK = "<!-- run -->"


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str
    is_run: bool

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    lines = page.read_text().splitlines()
    starts = [i for i, line in enumerate(lines) if line.lstrip().startswith("```")]
    for start, end in zip(starts[::2], starts[1::2], strict=True):
        before = [line for line in lines[:start] if line.strip()][-1:]
        text = "\n".join(lines[start + 1 : end])
        yield Block(page, start + 1, lines[start].strip("` "), text, before == [RUN_MARK])


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def head_of(config: Path) -> dict[str, str]:
    """The rows `# Name   text` of a config's first comment; a row goes on where the next line is indented."""
    head = re.match(r"(#.*\n)*", config.read_text())
    assert head is not None
    text = re.sub(r"\n#\s{4,}", " ", head[0])
    return dict(re.findall(r"^# ([A-Z]\w+)\s{2,}(.+)$", text, flags=re.M))


def examples() -> Iterator[tuple[str, str]]:
    """(place, command line) of every shell line in the pages, the commands' docstrings and the heads of the configs."""
    texts = [(block.place, block.text) for block in BLOCKS if block.language in ("sh", "bash", "console")]
    for module in modules().values():
        if ".commands." in module.name:
            texts.append((module.name, module.text.split('"""')[1].replace("\\\\\n", "\\\n")))
    texts += [(str(path.relative_to(ROOT)), head_of(path).get("Command", "")) for path in CONFIGS]
    for place, text in texts:
        for line in re.sub(r"\\\n\s*", " ", text).splitlines():
            line = re.sub(r"^(\$ |\.venv/bin/)", "", line.strip())
            if line.split(" ")[0] in (*PROGRAMS, "make"):
                yield place, line


EXAMPLES = sorted(set(examples()))


def words_of(line: str) -> list[str]:
    """The words of the first command of a shell line, without its comment, redirections and pipes."""
    words = shlex.split(line, comments=True)
    ends = [i for i, word in enumerate(words) if word in ("|", ">", "&&", ";", "&") or word.endswith(";")]
    return words[: min(ends, default=len(words))]


@pytest.mark.parametrize(("name", "limit"), MAX_LINES.items())
def test_page_is_short(name: str, limit: int) -> None:
    assert len((ROOT / name).read_text().splitlines()) <= limit


@pytest.mark.parametrize(("place", "line"), EXAMPLES, ids=[line[:60] for _, line in EXAMPLES])
def test_example_parses(place: str, line: str) -> None:
    program, *words = words_of(line)
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M)
        named = [word for word in words if "=" not in word]
        assert set(named) <= set(targets), f"{place}: no target of that name in the Makefile"
        return
    package = PROGRAMS[program]
    known = importlib.import_module(f"{package}.__main__").COMMANDS
    if not words or words[0] in ("-h", "--help"):
        return
    assert words[0] in known, f"{place}: {program} has no command {words[0]}"
    parser = argparse.ArgumentParser()
    name = words[0].replace("-", "_")
    importlib.import_module(f"{package}.commands.{name}").configure(parser)
    try:
        parse(parser, words[1:])
    except SystemExit:
        pytest.fail(f"{place}: {line}: does not parse; see stderr")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_exist(page: Path) -> None:
    text = page.read_text()
    named = set(re.findall(r"\bconfigs/[\w/-]+\.yaml", text))
    named |= set(re.findall(r"`((?:pipeline|data_tools|launch|tests|configs|benchmarks|docs)/[\w./-]*)`", text))
    links = set(re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text))
    missing = {name for name in named if not (ROOT / name).exists()}
    missing |= {link for link in links if not (page.parent / link).exists()}
    assert not missing, f"{page.name} names what is not there: {sorted(missing)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_are_named_exist(page: Path) -> None:
    named = set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text()))
    missing = [f"{file}::{name}" for file, name in named if f"\ndef {name}(" not in (ROOT / file).read_text()]
    assert not missing, f"{page.name} names no test of ours: {sorted(missing)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_running_text_exist(page: Path) -> None:
    for program, command in re.findall(r"`(tessera[a-z-]*) ([a-z-]+)[ `]", page.read_text()):
        known = importlib.import_module(f"{PROGRAMS[program]}.__main__").COMMANDS
        assert command in known, f"{page.name}: {program} has no command {command}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_drawn_tree_is_the_tree(page: Path) -> None:
    trees = [block.text for block in blocks_of(page) if block.language == "text" and "runs/" not in block.text]
    drawn = [name for text in trees for name in drawn_paths(text)]
    missing = [name for name in drawn if not ((ROOT / name).exists() or (ROOT / f"{name}.py").is_file())]
    assert not missing, f"{page.name} draws what is not there: {missing}"


def drawn_paths(text: str) -> Iterator[str]:
    """The paths of an indented tree; a line is `name [name ...]  what it is`, a folder's name ends with a slash."""
    above: list[tuple[int, str]] = []
    for line in text.splitlines():
        match = re.match(r"^(\s*)([\w./-]+(?: [\w./-]+)*)(?:\s{2,}|$)", line)
        names = match[2].split() if match else []
        if match is None or len(match[1]) > 8:  # an explanation that goes on
            continue
        above = [(depth, folder) for depth, folder in above if depth < len(match[1])]
        yield from ("".join(folder for _, folder in above) + name for name in names)
        if names[-1].endswith("/"):
            above.append((len(match[1]), names[-1]))


def test_drawn_paths_reads_a_tree() -> None:
    text = "a/            all\n  b  one\n             and more\n  c/ d/  two\n  e f\ng  three"
    assert list(drawn_paths(text)) == ["a/", "a/b", "a/c/", "a/d/", "a/e", "a/f", "g"]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_config_loads_and_says_command_cost_and_result(config: Path) -> None:
    load_experiment(config)
    assert set(head_of(config)) >= {"Command", "Cost", "Result"}, "the head names what to type, to pay and to expect"


def test_snippets_run(tmp_path: Path) -> None:
    runs = [block for block in BLOCKS if block.is_run or block.language == "console"]
    assert any(block.page.name == "README.md" for block in runs), f"no console block, and none marked {RUN_MARK}"
    for name in ("configs", "pipeline", "data_tools", "launch"):
        (tmp_path / name).symlink_to(ROOT / name)
    for block in runs:
        done = subprocess.run(command_of(block), cwd=tmp_path, capture_output=True, text=True, check=False)
        if block.language == "console":
            shown = [line for line in block.text.splitlines() if not line.startswith("$ ")]
            assert (done.stdout + done.stderr).splitlines() == shown, f"{block.place} prints something else"
        else:
            assert done.returncode == 0, f"{block.place}:\n{done.stdout}\n{done.stderr}"


def command_of(block: Block) -> list[str]:
    """What runs the block, with the console programs of this checkout; of a console block the lines after `$`."""
    if block.language == "python":
        return [sys.executable, "-c", block.text]
    lines = block.text.splitlines()
    if block.language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    programs = [f'{program}() {{ "{sys.executable}" -m {package} "$@"; }}' for program, package in PROGRAMS.items()]
    return ["bash", "-uc", "\n".join([*programs, "set -e" * (block.language != "console"), *lines])]
