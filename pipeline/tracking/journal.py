"""The journal of a run: what happened, one JSON line for each event, on disk before training goes on.

Training writes here and nowhere else; the shipper, the report and the registry read. Each attempt (each start of the
same run) has its own file `RUN/journal/events-000.jsonl`, so a torn last line of a killed attempt harms nothing. After
a resume from an older checkpoint the steps between are done again: `read_events` gives every step once.
"""

import contextlib
import json
import logging
import math
import os
import re
import socket
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.redact import redact

FOLDER = "journal"
_FILE = re.compile(r"events-(\d+)\.jsonl")

Kind = Literal["started", "params", "metrics", "picture", "served", "committed", "resumed", "ended"]
PROGRESS: tuple[Kind, ...] = ("metrics", "picture", "served", "committed")
"""Events of the training itself, which a resume from an older checkpoint takes back."""
Status = Literal["finished", "failed", "stopped"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Event:
    """One line of the journal."""

    kind: Kind
    """What happened."""

    attempt: int
    """Which start of the run wrote it, from 0."""

    time_ms: int
    """Wall clock at that moment, milliseconds since 1970 (UTC)."""

    samples_seen: int
    """Samples trained on until then; 0 for started, params and ended."""

    body: dict[str, Any]
    """The other fields: `values` and `step` of metrics, `name` and `path` of a picture, `status` of an end, ..."""


class Journal:
    """The writing side; owned by rank 0, silent on every other rank (`enabled=False`).

    A write that fails (disk full) warns once, keeps the lines and tries them again with the next event: it never
    raises into training. Nothing is created before the first event.
    """

    def __init__(self, run_dir: Path | str, enabled: bool = True) -> None:
        self._folder = Path(run_dir) / FOLDER
        self._enabled = enabled
        self._waiting: list[bytes] = []
        self._path: Path | None = None
        self._length = 0
        self._warned = False

    def params(self, params: Mapping[str, Any]) -> None:
        """The resolved config, as a nested mapping; secrets are taken out."""
        self._write("params", {"params": redact(params)})

    def metrics(self, values: Mapping[str, float], step: int, samples_seen: int) -> None:
        """Numbers at one moment of the run: anything that `float()` takes; they come back exact, nan and inf too."""
        numbers = {name: _encode(float(value)) for name, value in values.items()}
        self._write("metrics", {"samples_seen": samples_seen, "step": step, "values": numbers})

    def picture(self, name: str, path: Path | str, samples_seen: int) -> None:
        """A picture file of the run folder, such as a preview grid; `name` is that of the series."""
        place = os.path.relpath(path, self._folder.parent)
        self._write("picture", {"samples_seen": samples_seen, "name": name, "path": place})

    def served(self, first: int, batch_size: int, ranks: int, words: Sequence[str]) -> None:
        """What the steps from `first` on trained on, one word for each step (`pipeline.data.served`)."""
        body = {"first": first, "batch_size": batch_size, "ranks": ranks, "words": list(words)}
        self._write("served", {"samples_seen": first + batch_size * len(words), **body})

    def committed(self, generation: int, samples_seen: int, stall_seconds: float = 0.0) -> None:
        """A checkpoint at `samples_seen` is whole on disk: nothing before it can be lost or done again. Steps went on
        while it was written, but for `stall_seconds`, so events of more samples may stand before this one."""
        body = {"samples_seen": samples_seen, "generation": generation, "stall_seconds": round(stall_seconds, 4)}
        self._write("committed", body)

    def resumed(self, samples_seen: int) -> None:
        """Training goes on from a checkpoint at `samples_seen`; later events of earlier attempts no longer count."""
        self._write("resumed", {"samples_seen": samples_seen})

    def ended(self, status: Status, reason: str = "") -> None:
        """`finished`: all samples seen; `stopped`: asked to, will be resumed; `failed`: `reason` is the exception."""
        self._write("ended", {"status": status, "reason": redact(reason)})

    def _write(self, kind: Kind, body: dict[str, Any]) -> None:
        if not self._enabled:
            return
        try:
            if self._path is None:
                self._path = self._open()
                head = {"uid": self._uid(), "pid": os.getpid(), "host": socket.gethostname()}
                self._waiting.append(_line("started", head))
            self._waiting.append(_line(kind, body))
            self._flush(self._path)
        except OSError as error:
            if not self._warned:
                log.warning("journal: cannot write (%s); events are kept in memory and tried again", error)
            self._warned = True

    def _open(self) -> Path:
        """Create the file of this attempt: the first free number, which no second writer can take."""
        self._folder.mkdir(parents=True, exist_ok=True)
        number = max((n for n, _ in attempt_files(self._folder.parent)), default=-1) + 1
        path = self._folder / f"events-{number:03d}.jsonl"
        path.open("xb").close()
        return path

    def _uid(self) -> str:
        """The identity of the run, the same for all its attempts: made by the first of them."""
        first = next((e for e in read_all_events(self._folder.parent) if e.kind == "started"), None)
        return first.body["uid"] if first else uuid.uuid4().hex

    def _flush(self, path: Path) -> None:
        """Append the waiting lines and fsync; after a failure the file is cut back to its last whole line."""
        data = b"".join(self._waiting)
        try:
            with path.open("ab", buffering=0) as file:
                if file.write(data) != len(data):
                    raise OSError("short write")
                os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(path, self._length)
            raise
        self._length += len(data)
        self._waiting.clear()


def attempt_files(run_dir: Path | str) -> list[tuple[int, Path]]:
    """(attempt, file) of every start of the run, oldest first."""
    folder = Path(run_dir) / FOLDER
    names = os.listdir(folder) if folder.is_dir() else []
    found = [(int(match[1]), folder / name) for name in names if (match := _FILE.fullmatch(name))]
    return sorted(found)


def read_all_events(run_dir: Path | str) -> Iterator[Event]:
    """Every event as it was written, superseded ones too; unreadable (torn) lines are passed over."""
    for attempt, path in attempt_files(run_dir):
        for line in path.read_bytes().splitlines():
            event = _parse(attempt, line)
            if event is not None:
                yield event


def read_events(run_dir: Path | str) -> list[Event]:
    """What the run did, each step once, in order.

    A `resumed` drops what lies after its checkpoint: events of more samples, and those of as many samples that were
    written after the commit. An attempt that begins to train without it has started from 0. Ends of attempts that
    were followed by another one are dropped. A metric has one value for each `samples_seen`: the first.
    """
    events: list[Event] = []
    origin = -1
    for event in read_all_events(run_dir):
        if event.kind == "started":
            events = [e for e in events if e.kind != "ended"]
        elif event.attempt != origin and event.kind in ("resumed", *PROGRESS):
            events = _before(events, event.samples_seen if event.kind == "resumed" else 0)
            origin = event.attempt
        events.append(event)
    return list(_first_values(events))


def _before(events: list[Event], samples_seen: int) -> list[Event]:
    """The events that belong to the state of the checkpoint at `samples_seen`."""
    kept: list[Event] = []
    closed = samples_seen == 0
    for event in events:
        progress = event.kind in PROGRESS
        if not progress or event.samples_seen < samples_seen or (event.samples_seen == samples_seen and not closed):
            kept.append(event)
        closed = closed or (event.kind == "committed" and event.samples_seen == samples_seen)
    return kept


def _first_values(events: list[Event]) -> Iterator[Event]:
    """Drop second values of a metric at one `samples_seen`: a resumed attempt may measure its first moment again."""
    seen: set[tuple[str, int]] = set()
    for event in events:
        if event.kind == "metrics":
            fresh = {k: v for k, v in event.body["values"].items() if (k, event.samples_seen) not in seen}
            seen |= {(name, event.samples_seen) for name in fresh}
            event = Event(event.kind, event.attempt, event.time_ms, event.samples_seen, {**event.body, "values": fresh})
            if not fresh:
                continue
        yield event


def _line(kind: Kind, body: Mapping[str, Any]) -> bytes:
    record = {"kind": kind, "time_ms": time.time_ns() // 1_000_000, **_encode(body)}
    return (json.dumps(record, separators=(",", ":"), allow_nan=False, default=str) + "\n").encode()


def _encode(value: Any) -> Any:
    """Numbers that JSON lacks (nan, inf, -inf) as strings; all others are written with the digits of `repr`: exact."""
    if isinstance(value, Mapping):
        return {str(key): _encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _parse(attempt: int, line: bytes) -> Event | None:
    try:
        record = json.loads(line)
        kind, time_ms, samples_seen = record.pop("kind"), record.pop("time_ms"), record.pop("samples_seen", 0)
    except (ValueError, KeyError, AttributeError):
        return None
    if kind == "metrics":
        record["values"] = {name: float(value) for name, value in record["values"].items()}
    return Event(kind, attempt, time_ms, samples_seen, record)
