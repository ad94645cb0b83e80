"""Bytes of an input, from wherever it lies: local file, object store, web, or a range of one. Called by shard writers.

What has to come over a network is fetched by threads, ahead of its turn; a shard writer holds a bounded number of
pictures at any time.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from data_tools.sources.cells import read_cell
from data_tools.sources.pair import Cell, Fetch, Found, Pair, Span
from data_tools.web import WebConfig, download, is_web
from pipeline import storage
from pipeline.retry import patiently

Outcome = Callable[[], Found]
"""Gives what a pair holds, or raises what went wrong."""


def fetch_stored(url: str, place: Span | Cell | None) -> bytes:
    """From a disk or a store; a local file without the detour through fsspec, which costs more than a small picture.

    Raises:
        OSError: not readable, or shorter than the span.
    """
    return _fetch_local(url, place) if storage.is_local(url) else patiently(lambda: _fetch_remote(url, place))


def _fetch_local(url: str, place: Span | Cell | None) -> bytes:
    if isinstance(place, Cell):
        return read_cell(url, place)
    if place is None:
        return storage.local_path(url).read_bytes()
    with storage.local_path(url).open("rb") as file:
        file.seek(place[0])
        return _whole(file.read(place[1] - place[0]), place)


def _fetch_remote(url: str, place: Span | Cell | None) -> bytes:
    if isinstance(place, Cell):
        return read_cell(url, place)
    if place is None:
        return storage.read_bytes(url)
    fs, path = storage.filesystem(url)
    return _whole(bytes(fs.cat_file(path, start=place[0], end=place[1])), place)


def _whole(data: bytes, span: Span) -> bytes:
    if len(data) != span[1] - span[0]:
        raise OSError("file shorter than when it was listed")
    return data


def read_ahead(pairs: Sequence[Pair], config: WebConfig) -> Iterator[tuple[Pair, Outcome]]:
    """Every pair in order, with what it holds."""

    def fetch(url: str, place: Span | Cell | None) -> bytes:
        return download(url, config) if is_web(url) else fetch_stored(url, place)

    if all(storage.is_local(pair.picture) for pair in pairs):  # threads would cost more than they hide
        for pair in pairs:
            yield pair, partial(pair.read, fetch)
        return
    num_threads = 1 if any(pair.cell for pair in pairs) else config.num_threads  # cells want to be read in order
    yield from _in_threads(pairs, fetch, num_threads)


def _in_threads(pairs: Sequence[Pair], fetch: Fetch, num_threads: int) -> Iterator[tuple[Pair, Outcome]]:
    with ThreadPoolExecutor(num_threads, thread_name_prefix="fetch") as pool:
        waiting: deque[tuple[Pair, Future[Found]]] = deque()
        try:
            for pair in pairs:
                waiting.append((pair, pool.submit(pair.read, fetch)))
                if len(waiting) > num_threads:
                    first, future = waiting.popleft()
                    yield first, future.result
            for first, future in waiting:
                yield first, future.result
        finally:
            for _, future in waiting:
                future.cancel()
