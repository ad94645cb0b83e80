"""How the verbs of `tessera registry` print a version, a figure, a date and a table."""

import argparse
import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pipeline.tracking.version import Version

if TYPE_CHECKING:
    from rich.console import Console

SHORT = 12
"""Characters of a digest that a person sees; `--json` has them all."""
PIPE_WIDTH = 160
"""Columns where the output is no terminal."""


def figures(version: Version) -> str:
    """What was measured, in one line."""
    metrics = version.evaluation["metrics"] if version.evaluation else {}
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def aliases(version: Version) -> str:
    """`@champion @candidate`."""
    return " ".join(f"@{alias}" for alias in version.aliases)


def date(time_ms: int) -> str:
    """Milliseconds since 1970 as `2030-01-31 12:00 UTC`."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def print_version(args: argparse.Namespace, version: Version, line: str) -> None:
    """The line, or the whole version as JSON."""
    print(json.dumps(asdict(version), indent=2) if args.json else line)


def print_table(columns: list[str], rows: list[list[str]]) -> None:
    """Rows under their columns."""
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*row)
    console(markup=False).print(table)


def console(markup: bool = True) -> "Console":
    """Where trees and tables go: as wide as the terminal, and wide where there is none."""
    from rich.console import Console

    return Console(highlight=False, markup=markup, width=None if sys.stdout.isatty() else PIPE_WIDTH)
