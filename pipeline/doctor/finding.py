"""What a check of the preflight says: its outcome, and the few words that every check shares.

A check looks and changes nothing but a temporary file or object of its own. It returns one `Finding`: `ok`; `warning`,
when a run works in spite of it; or `failure`, when a run will fail. Used by every module of this folder.
"""

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    check: str
    """What was looked at."""
    status: Status
    """How bad it is."""
    found: str
    """What was seen."""
    remedy: str = ""
    """What to do; empty when all is well."""


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its name when it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def gib(num_bytes: int) -> str:
    """A size in words."""
    return f"{num_bytes / 2**30:.1f} GiB"
