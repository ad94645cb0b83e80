"""Secrets are hidden wherever they stand; words that only look like one are left alone."""

import pytest

from pipeline.tracking.redact import HIDDEN, redact, redact_text


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
        ("https://token@host/a", f"https://{HIDDEN}@host/a"),
        ("https://h/a?sig=abc&v=2", f"https://h/a?sig={HIDDEN}&v=2"),
        ("HF_TOKEN=abc python x.py", f"HF_TOKEN={HIDDEN} python x.py"),
        ("s3://bucket/key@2", "s3://bucket/key@2"),
        ("train.lr=0.1", "train.lr=0.1"),
    ],
)
def test_inside_text(text: str, expected: str) -> None:
    assert redact_text(text) == expected
