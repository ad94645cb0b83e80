"""A shard whose failed inputs are tried again: the samples that it has stay, byte for byte.

While that goes on the shard's stats say so, and a run that finds them so ends what was begun: after a kill at any
moment the tar, old or new, holds every sample that it held. Called by the shard writers and by `data_tools.shard`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from mmap import mmap
from typing import Any

from data_tools.table import SUCCESS, sample_digest, table_rows
from data_tools.tars import opened, sample_spans
from pipeline import storage
from pipeline.config import UserError
from pipeline.data.shards import stats_name
from pipeline.data.tar import TarError, TarSample, parse_samples

UNDER_WAY = "tried_again_now"
"""Field of the stats of a shard that is being written again."""


def is_open(stats: Mapping[str, Any] | None, retry_failed: bool) -> bool:
    """True for a shard with work left: not there, being tried again, or with failures that shall be tried again."""
    if stats is None or UNDER_WAY in stats:
        return True
    return retry_failed and bool(stats["count"] > stats["successes"])


@contextmanager
def kept_samples(url: str, shard: str) -> Iterator[Mapping[str, TarSample]]:
    """The samples of a shard by key; from here on its stats say that it is being written again.

    Raises:
        UserError: the shard is damaged, which must not be written into a new manifest as if it were right.
    """
    place = storage.join(url, stats_name(shard))
    stats = storage.read_json(place)
    try:
        with opened(storage.join(url, shard)) as buffer:
            samples = KeptSamples(buffer)
            _check(url, shard, samples, may_be_new=UNDER_WAY in stats)
            storage.write_json(place, stats | {UNDER_WAY: True})
            yield samples
    except (TarError, FileNotFoundError) as error:
        raise UserError(f"{url}: {shard} is damaged: {error}; run `tessera-data validate {url} --repair`") from None


class KeptSamples(Mapping[str, TarSample]):
    """The samples of a tar by key, each parsed when it is asked for."""

    def __init__(self, buffer: bytes | mmap) -> None:
        self._buffer = buffer
        self._spans = {sample.key: sample.span for sample in sample_spans(buffer)}

    def __getitem__(self, key: str) -> TarSample:
        return parse_samples(self._buffer[slice(*self._spans[key])])[0]

    def __contains__(self, key: object) -> bool:
        return key in self._spans

    def __iter__(self) -> Iterator[str]:
        return iter(self._spans)

    def __len__(self) -> int:
        return len(self._spans)


def _check(url: str, shard: str, samples: KeptSamples, may_be_new: bool) -> None:
    """Every sample against its row of the table, except one that an interrupted try has added already."""
    rows = table_rows(url, shard) or []
    wanted = {row["key"]: row["sample_sha256"] for row in rows if row["status"] == SUCCESS}
    if not wanted.keys() <= samples.keys():
        raise TarError("samples of its table are gone")
    for key in samples:
        if key not in wanted and may_be_new:
            continue
        if sample_digest(samples[key].members) != wanted.get(key):
            raise TarError(f"{key} has other bytes than those that were written")
