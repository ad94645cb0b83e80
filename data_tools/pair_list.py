"""All pairs of an input on disk, so that memory does not grow with the dataset: any of them by number, at once.

A source is walked through once; its pairs become lines of a temporary file, and of each only the place in it stays in
memory (8 bytes). Called by `data_tools.shard`.
"""

import hashlib
import json
import mmap
import tempfile
from array import array
from collections.abc import Iterable
from typing import Any, Self

import numpy as np

from data_tools.sources.pair import LOSSLESS_ENDINGS, Cell, Pair, Source

ARROW_TYPES = {bool: "bool", int: "int64", float: "double"}


class PairList:
    """The pairs of `source` in its order; owns a temporary file, so close it (or use it in a `with`)."""

    def __init__(self, source: Source) -> None:
        self._file = tempfile.TemporaryFile(prefix="tessera-pairs-")  # noqa: SIM115 - closed by `close`
        self._kinds: dict[str, set[type]] = {}
        self._late_columns = dict(source.late_columns())
        digest, places, place = hashlib.sha256(), array("q", [0]), 0
        starts, last = array("q"), None
        self.all_lossless = True
        """No picture's name ends like that of a format which loses something."""
        for pair in source.pairs():
            line = json.dumps(vars(pair), default=str).encode() + b"\n"
            place += self._file.write(line)
            places.append(place)
            digest.update(_facts(pair))
            group = (pair.picture, pair.cell.group) if pair.cell else None
            if group is not None and group != last:
                starts.append(len(places) - 2)
            last = group
            self._note(pair)
        self._file.flush()
        self._lines = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) if place else b""
        self._places = np.frombuffer(places, dtype=np.int64)
        self.group_starts = np.frombuffer(starts, dtype=np.int64)
        """Number of the first pair of each row group; empty unless the pictures lie in row groups."""
        self.digest = digest.hexdigest()
        """sha256 hex digest of what the source says about its pairs; independent of where the source lies."""

    def __len__(self) -> int:
        return len(self._places) - 1

    def take(self, numbers: Iterable[int]) -> list[Pair]:
        """The pairs of these numbers, in this order."""
        rows = (json.loads(self._lines[self._places[n] : self._places[n + 1]]) for n in numbers)
        return [_pair(row) for row in rows]

    def extra_columns(self) -> dict[str, str]:
        """Arrow type of each further column over the whole input, so that all shards have one schema; else string."""
        seen = {
            name: ARROW_TYPES.get(next(iter(kinds)), "string") if len(kinds) == 1 else "string"
            for name, kinds in self._kinds.items()
        }
        return seen | self._late_columns

    def close(self) -> None:
        """Remove the file."""
        if isinstance(self._lines, mmap.mmap):
            self._lines.close()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _note(self, pair: Pair) -> None:
        self.all_lossless = self.all_lossless and pair.name.lower().endswith(LOSSLESS_ENDINGS)
        for name, value in pair.extra.items():
            self._kinds.setdefault(name, set()).update([] if value is None else [type(value)])


def _pair(row: dict[str, Any]) -> Pair:
    """A pair as it was before it became a line."""
    span, cell = row.pop("span"), row.pop("cell")
    return Pair(**row, span=tuple(span) if span else None, cell=Cell(*cell) if cell else None)


def _facts(pair: Pair) -> bytes:
    facts: list[Any] = [pair.name, pair.caption, pair.caption_file is not None, pair.num_bytes, pair.span, pair.extra]
    facts += [pair.cell] if pair.cell else []
    return json.dumps(facts, default=str).encode()
