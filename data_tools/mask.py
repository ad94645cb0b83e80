"""Filters over the rows of a dataset -> one bit for each sample. Called by `tessera-data mask`.

Rules are applied in a fixed order, and each is told how many samples it removed that were there before it. Rules over
columns need only the shards' tables; perceptual duplicates need the pictures.
"""

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from data_tools.perceptual import far_apart, perceptual_hashes
from data_tools.rows import UNREADABLE, rows_of_shard
from data_tools.sources.pair import no_column
from data_tools.table import SUCCESS
from pipeline import storage
from pipeline.config import Config, UserError
from pipeline.data.selection import Selection, select
from pipeline.data.shards import Manifest

COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le, ">=": operator.ge, "==": operator.eq, "!=": operator.ne, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
CONDITION = re.compile(r"\s*([^\s<>=!]+)\s*(<=|>=|==|!=|<|>)\s*(.+?)\s*")

Row = Mapping[str, Any]


class MaskConfig(Config):
    """Which samples count; a rule that is None is not applied."""

    min_side: int | None = Field(None, gt=0)
    """Pixels of the shorter side of the picture as it was found."""
    max_aspect: float | None = Field(None, ge=1)
    """Longer side over shorter side, as found."""
    min_words: int | None = Field(None, ge=0)
    """Words of the caption."""
    max_words: int | None = Field(None, ge=0)
    """Words of the caption."""
    language: str | None = Field(None, pattern="^[a-z]{2}$")
    """Of the caption, as `en` (ISO 639-1)."""
    where: tuple[str, ...] = ()
    """Conditions on columns, as `similarity >= 0.3`; a sample without a value fails."""
    opt_out: str | None = None
    """File with one key or URL a line: these samples do not count."""
    exact_duplicates: bool = False
    """Of samples with the same picture file only the first counts."""
    near_duplicates: int | None = Field(None, ge=0, le=16)
    """Of pictures whose 64-bit perceptual hashes differ in at most so many bits only the first counts."""


@dataclass(frozen=True)
class Rule:
    """One filter."""

    name: str
    keeps: Callable[[Row], bool]


def make_selection(url: str, manifest: Manifest, config: MaskConfig, num_workers: int) -> Selection:
    """Apply the rules to every sample of the dataset `url`.

    Raises:
        UserError: no rule at all, a condition that cannot be read, or a column that no sample has.
    """
    rules = list(_rules(config))
    if not rules and config.near_duplicates is None:
        raise UserError("no rule given; see `tessera-data mask --help`")
    keep = np.ones(manifest.num_samples, dtype=bool)
    removed = dict.fromkeys((rule.name for rule in rules), 0)
    for place, row in enumerate(_rows(url, manifest)):
        for rule in rules:
            if not rule.keeps(row):
                keep[place] = False
                removed[rule.name] += 1
                break
    if config.near_duplicates is not None:
        hashes = perceptual_hashes(url, manifest, num_workers)
        near = keep & ~far_apart(hashes, keep, config.near_duplicates)
        removed[f"near duplicates ({config.near_duplicates} bits)"] = int(near.sum())
        keep &= ~near
    return select(manifest, keep, removed)


def _rows(url: str, manifest: Manifest) -> Iterator[Row]:
    """One row for each sample, in the order of the manifest."""
    for record in manifest.shards:
        count = 0
        for row in rows_of_shard(url, record):
            if row["status"] in (SUCCESS, UNREADABLE):
                count += 1
                yield row
        if count != record.num_samples:
            raise UserError(
                f"{record.name}: its table does not fit its tar; run `tessera-data validate {url} --repair`"
            )


def _rules(config: MaskConfig) -> Iterator[Rule]:
    """The rules of a config, those that are cheap first."""
    if config.opt_out is not None:
        unwanted = {line.strip() for line in storage.read_bytes(config.opt_out).decode().splitlines()} - {""}
        yield Rule("opted out", lambda row: not unwanted & {row["key"], row.get("url"), row.get("input_url")})
    if (side := config.min_side) is not None:
        yield Rule(f"smaller than {side}", lambda row: min(_size(row)) >= side)
    if (aspect := config.max_aspect) is not None:
        yield Rule(f"longer than {aspect:g} : 1", lambda row: max(_size(row)) <= aspect * min(_size(row)))
    if (fewest := config.min_words) is not None:
        yield Rule(f"fewer than {fewest} words", lambda row: len(row["caption"].split()) >= fewest)
    if (most := config.max_words) is not None:
        yield Rule(f"more than {most} words", lambda row: len(row["caption"].split()) <= most)
    for text in config.where:
        yield Rule(f"not {text}", _condition(text))
    if (language := config.language) is not None:
        yield Rule(f"not {language}", _speaks(language))
    if config.exact_duplicates:
        yield Rule("exact duplicates", _is_new())


def _size(row: Row) -> tuple[int, int]:
    return row["original_width"] or row["width"] or 0, row["original_height"] or row["height"] or 0


def _condition(text: str) -> Callable[[Row], bool]:
    """`column >= 0.3`, numbers as numbers and the rest as text."""
    match = CONDITION.fullmatch(text)
    if match is None:
        raise UserError(f"--where {text!r}: write COLUMN OPERATOR VALUE, as 'similarity >= 0.3'")
    column, compare, value = match[1], COMPARISONS[match[2]], match[3].strip("'\"")

    def keeps(row: Row) -> bool:
        if column not in row:
            raise UserError(f"--where {text!r}: {no_column(column, row)}")
        found = row[column]
        if found is None:
            return False
        if isinstance(found, str):
            return compare(found, value)
        try:
            return compare(float(found), float(value))
        except ValueError:
            raise UserError(f"--where {text!r}: {column} holds numbers, {value!r} is none") from None

    return keeps


def _speaks(language: str) -> Callable[[Row], bool]:
    """By py3langid, a small linear model over byte sequences."""
    try:
        from py3langid import classify
    except ImportError:
        raise UserError("--language: py3langid is not installed; pip install 'tessera[language]'") from None
    return lambda row: classify(row["caption"])[0] == language


def _is_new() -> Callable[[Row], bool]:
    """True once for each picture file."""
    seen: set[bytes] = set()

    def keeps(row: Row) -> bool:
        digest = bytes.fromhex(row["sha256"] or "")[:16] or row["key"].encode()
        known = digest in seen
        seen.add(digest)
        return not known

    return keeps
