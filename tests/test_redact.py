"""Secrets are hidden wherever they stand; words that only look like one are left alone."""

from pathlib import Path

import pytest

from pipeline.command_line import run_program
from pipeline.config import UserError
from pipeline.experiment import load_experiment
from pipeline.redact import HIDDEN, redact, redact_text
from tests.source import ROOT


@pytest.mark.parametrize("name", ["HF_TOKEN", "aws_secret_access_key", "password", "apiKey", "AWS_ACCESS_KEY_ID"])
def test_secret_names(name: str) -> None:
    assert redact({"a": [{name: "hunter2"}]}) == {"a": [{name: HIDDEN}]}


@pytest.mark.parametrize("name", ["max_tokens", "tokenizer", "keys", "monkey", "num_tokens", "access"])
def test_innocent_names(name: str) -> None:
    assert redact({name: "value", "n": 3}) == {name: "value", "n": 3}


def test_an_empty_secret_is_shown_empty() -> None:
    assert redact({"token": "", "secret": None}) == {"token": "", "secret": None}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://me:pw@db/x", f"postgresql://{HIDDEN}@db/x"),
        ("postgresql://me:p@w:x@db/x", f"postgresql://{HIDDEN}@db/x"),
        ("Authorization: Bearer abc.def-ghi9", f"Authorization: Bearer {HIDDEN}"),
        ("the basic assumptions", "the basic assumptions"),
        ("https://token@host/a", f"https://{HIDDEN}@host/a"),
        ("https://h/a?sig=abc&v=2", f"https://h/a?sig={HIDDEN}&v=2"),
        ("HF_TOKEN=abc python x.py", f"HF_TOKEN={HIDDEN} python x.py"),
        ("s3://bucket/key@2", "s3://bucket/key@2"),
        ("train.lr=0.1", "train.lr=0.1"),
    ],
)
def test_inside_text(text: str, expected: str) -> None:
    assert redact_text(text) == expected


def test_no_command_prints_a_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = "nosuch://me:hunter2@host/shards"
    for program, words in {
        "pipeline": ["registry", "list", "--uri", url],
        "data_tools": ["validate", url],
    }.items():
        assert run_program(program, "", {words[0]: ""}, f"{program}.commands", words) == 2
        told = capsys.readouterr()
        assert "nosuch" in told.err and "hunter2" not in told.err + told.out


@pytest.mark.parametrize(
    "setting",
    ["tracking.uri=http://me:hunter2@host", "data.train=s3://me:hunter2@store/train", "run=x?token=hunter2"],
)
def test_a_config_with_a_secret_is_refused(tmp_path: Path, setting: str) -> None:
    """It would be stored with the run, and registered with the model."""
    with pytest.raises(UserError, match="holds a secret") as refused:
        load_experiment(ROOT / "configs" / "autoencoder" / "debug.yaml", [setting])
    assert setting.partition("=")[0] in str(refused.value) and "hunter2" not in str(refused.value)
