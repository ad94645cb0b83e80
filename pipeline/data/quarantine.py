"""The list of unreadable samples: each is written down once, replaced, and too many of them stop the run.

Called by the reader. The file is JSON lines, `{"sample_id", "shard", "place", "reason", "rank", "data"}`, appended to
by every rank; read again by `tessera-data verify-epoch`.
"""

import json
import os
from pathlib import Path

from pipeline.config import UserError


class Quarantine:
    """Counts the distinct unreadable samples that this rank met; `path` None writes nothing.

    Args:
        data: digest of the data whose samples the ids are: the phases of a run share the file, and begin at 0 each.
    """

    def __init__(self, path: Path | None, limit: float, rank: int, data: str) -> None:
        self._path = path
        self._limit = limit
        self._origin = {"rank": rank, "data": data}
        self._seen: set[int] = set()

    def __len__(self) -> int:
        return len(self._seen)

    def __contains__(self, sample_id: int) -> bool:
        return sample_id in self._seen

    def add(self, sample_id: int, shard: str, place: int, reason: str) -> None:
        """Write one sample down.

        Raises:
            UserError: more of them than `limit`.
        """
        if sample_id in self._seen:
            return
        self._seen.add(sample_id)
        if self._path is not None:
            row = {"sample_id": sample_id, "shard": shard, "place": place, "reason": reason}
            self._append(self._path, json.dumps(row | self._origin) + "\n")
        if len(self._seen) > self._limit:
            raise UserError(
                f"{len(self._seen)} unreadable samples, the last in {shard} at {place}: {reason};"
                " run `tessera-data validate`, or raise data.max_bad_fraction"
            )

    @staticmethod
    def _append(path: Path, line: str) -> None:
        """One whole line at the end of the file, also when several ranks write at once."""
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)
