"""Configs: strict, composed from parents and overrides, and told in a user's words when they are wrong."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError

from pipeline.config import Config, UserError, config_differences, config_digest, dump_config, load_config, parse_config
from tests.source import modules


class Net(Config):
    channels: int = 64


class Painter(Config):
    kind: Literal["painter"] = "painter"
    unet: Net = Net()


class Coder(Config):
    kind: Literal["coder"] = "coder"
    num_codes: int = Field(default=512, gt=0)


class Run(Config):
    stage: Annotated[Painter | Coder, Field(discriminator="kind")]
    total_samples: int = 10
    rate: float = Field(default=0.1, gt=0)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"stage": {"kind": "painter", "unet": {"channls": 1}}}, "stage.unet.channls: unknown; did you mean channels?"),
        ({"stage": {"kind": "coder", "num_cods": 1}}, "stage.num_cods: unknown; did you mean num_codes?"),
        ({"stage": {"kind": "coder", "unet": 1}}, "stage.unet: unknown"),
        ({"stage": {"kind": "coder"}, "total_sample": 1}, "total_sample: unknown; did you mean total_samples?"),
        ({"stage": {"kind": "coder"}, "total_samples": "many"}, "total_samples: Input should be a valid integer"),
        ({"stage": {"kind": "coder", "num_codes": 0}}, "num_codes: Input should be greater than 0 (got 0)"),
        ({"stage": {"kind": "paintr"}}, "stage.kind: paintr is none of coder, painter; did you mean painter?"),
        ({"stage": {"kind": "poet", "verses": 3}}, "stage.kind: poet is none of coder, painter"),
        ({"stage": {"kind": ["coder"]}}, "stage.kind: ['coder'] is none of coder, painter"),
        ({"stage": {"kind": "coder"}, "rate": float("inf")}, "rate: Input should be a finite number (got inf)"),
        ({"stage": {"num_codes": 2}}, "stage: has no kind; add stage.kind, one of coder, painter"),
        ({}, "stage: Field required"),
    ],
)
def test_a_mistake_is_one_line_with_the_near_name(tree: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_config(tree, Run, "run.yaml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("run.yaml: ")
    assert "\n" not in str(caught.value)


def test_a_key_of_another_kind_is_not_offered() -> None:
    with pytest.raises(UserError) as caught:
        parse_config({"stage": {"kind": "coder", "unet": 1}}, Run, "run.yaml")
    assert "did you mean" not in str(caught.value)


def test_three_layers_merge_in_order(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("stage: {kind: painter, unet: {channels: 8}}\ntotal_samples: 5\n")
    (tmp_path / "child.yaml").write_text("extends: base.yaml\ntotal_samples: 6\n")
    config = load_config(tmp_path / "child.yaml", Run, ["stage.unet.channels=16"])
    assert config == Run(stage=Painter(unet=Net(channels=16)), total_samples=6)
    assert load_config(tmp_path / "base.yaml", Run).total_samples == 5


def test_dump_and_load_give_an_equal_config_with_an_equal_digest(tmp_path: Path) -> None:
    config = Run(stage=Painter(unet=Net(channels=3)))
    (tmp_path / "dumped.yaml").write_text(dump_config(config))
    again = load_config(tmp_path / "dumped.yaml", Run)
    assert again == config
    assert config_digest(again) == config_digest(config)
    assert config_digest(config) != config_digest(Run(stage=Painter()))


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("stage: [", (), "not valid YAML"),
        ("- a", (), "a config is a mapping"),
        ("extends: self.yaml", (), "extends itself"),
        ("extends: [a.yaml, b.yaml]", (), "not the name of one config file"),
        ("stage: {kind: coder}", ("total_samples={1",), "'total_samples={1': the value is not valid YAML"),
        ("stage: {kind: coder}", ("total_samples",), "an override is written a.b=value"),
        ("total_samples: 1", ("total_samples.x=1",), "not a group of settings"),
    ],
)
def test_broken_files_and_overrides_are_told(tmp_path: Path, text: str, words: tuple[str, ...], message: str) -> None:
    (tmp_path / "self.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(tmp_path / "self.yaml", Run, words)


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "shapes.yaml").write_text("")
    with pytest.raises(UserError, match=r"no such config file; did you mean .*shapes\.yaml"):
        load_config(tmp_path / "shape.yaml", Run)


def test_configs_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Run(stage=Coder()).total_samples = 3  # type: ignore[misc]


def test_differences_name_each_leaf_with_both_values() -> None:
    old = {"unet": {"channels": 64, "depth": 1}, "seed": 0}
    assert config_differences(old, {"unet": {"channels": 128, "depth": 1}, "seed": 0}) == ["unet.channels: 64 -> 128"]
    assert config_differences(old, {"unet": {"channels": 64}, "seed": 0}) == ["unet.depth: 1 -> None"]
    assert config_differences(old, old) == []


def test_another_kind_replaces_what_was_said_of_the_first(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("stage: {kind: painter, unet: {channels: 8}}\n")
    (tmp_path / "child.yaml").write_text("extends: base.yaml\nstage: {kind: coder}\n")
    assert load_config(tmp_path / "child.yaml", Run).stage.kind == "coder"


RECORDS = {"Lineage"}
"""Classes of this kind that a run fills in itself: nobody sets their fields, and the page and registry take all."""


def keys_of_configs() -> Iterator[tuple[str, str]]:
    """(class, key) of everything that a config file may set."""
    nodes = [node for module in modules().values() for node in ast.walk(module.tree)]
    classes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}

    def is_config(name: str) -> bool:
        bases = [base.id for base in classes[name].bases if isinstance(base, ast.Name)] if name in classes else []
        return "Config" in bases or any(map(is_config, bases))

    for name in sorted(set(filter(is_config, classes)) - RECORDS):
        for statement in classes[name].body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                yield name, statement.target.id


def test_no_key_is_parsed_and_ignored() -> None:
    nodes = (node for module in modules().values() for node in ast.walk(module.tree))
    read = {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}
    keys = list(keys_of_configs())
    assert len(keys) > 200 and [key for key in keys if key[1] not in read] == []
