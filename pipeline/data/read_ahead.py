"""A thread that prepares batches while the last one is trained on, and that always ends.

It plans some batches ahead so that their blocks travel early, decodes a few ahead, and hands them over through a
bounded queue. It ends when its consumer closes it, drops it, fails, is interrupted, or when the interpreter exits.
Called by the loader.
"""

import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Protocol

from pipeline.data.batch import Batch
from pipeline.data.reader import Slots, Substitute

POLL_SECONDS = 0.1
"""How often a waiting thread looks whether it is still wanted."""

_Item = Batch | Exception | None
_Handover = queue.Queue[_Item]


class BatchReader(Protocol):
    """What the thread reads with: `reader.SampleReader` by index, `stream.StreamReader` from a stream."""

    def prefetch(self, slots: Slots) -> None:
        """Later batches will ask for these."""
        ...

    def read(self, slots: Slots, substitute: Substitute | None) -> Batch:
        """The batch of these."""
        ...


class ReadAhead(Iterator[Batch]):
    """The batches of `plan`, in order.

    Args:
        num_batches: decoded batches that may wait for the consumer.
        num_fetches: planned batches whose blocks are being fetched meanwhile.
    """

    def __init__(
        self,
        plan: Iterable[Slots],
        reader: BatchReader,
        substitute: Substitute | None,
        num_batches: int,
        num_fetches: int,
    ) -> None:
        self._ready: _Handover = queue.Queue(num_batches)
        stop = threading.Event()
        # The thread must not hold `self`: then the finalizer runs when the consumer lets go of the iterator.
        thread = threading.Thread(
            target=_produce,
            args=(iter(plan), reader, substitute, num_fetches, self._ready, stop),
            name="read-ahead",
            daemon=True,
        )
        thread.start()
        self.close = weakref.finalize(self, _end, stop, thread, self._ready)
        """Ends the thread and waits for it; may be called again."""

    def __next__(self) -> Batch:
        """The next batch; an error of the thread is raised here."""
        begin = time.perf_counter()
        item = self._wait()
        if isinstance(item, Batch):
            item.fetch_seconds = time.perf_counter() - begin
            return item
        self.close()
        raise item if item is not None else StopIteration

    def _wait(self) -> _Item:
        """The next item; None at the end of the plan and after `close`."""
        while self.close.alive:
            try:
                return self._ready.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
        return None


def _produce(
    plan: Iterator[Slots],
    reader: BatchReader,
    substitute: Substitute | None,
    num_fetches: int,
    ready: _Handover,
    stop: threading.Event,
) -> None:
    """Body of the thread: keep `num_fetches` batches planned, read the oldest, hand it over."""
    planned: deque[Slots] = deque()
    last: _Item = None
    ahead = 1  # the first batch does not wait for the blocks of later ones
    try:
        while not stop.is_set():
            fresh = list(islice(plan, ahead - len(planned)))
            reader.prefetch([slot for slots in fresh for slot in slots])
            planned += fresh
            if not planned:
                break
            _hand_over(reader.read(planned.popleft(), substitute), ready, stop)
            ahead = num_fetches
    except Exception as error:  # whatever it is, it belongs to the consumer
        last = error
    _hand_over(last, ready, stop)


def _hand_over(item: _Item, ready: _Handover, stop: threading.Event) -> None:
    """Wait for room, but not for a consumer that is gone."""
    while not stop.is_set():
        try:
            return ready.put(item, timeout=POLL_SECONDS)
        except queue.Full:
            continue


def _end(stop: threading.Event, thread: threading.Thread, ready: _Handover) -> None:
    """Tell the thread to end, make room where it may be waiting for some, and wait until it has."""
    stop.set()
    with suppress(queue.Empty):
        while True:
            ready.get_nowait()
    if thread is not threading.current_thread():
        thread.join()
