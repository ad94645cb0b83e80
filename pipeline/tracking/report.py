"""RUN/report.html: the whole run on one page that needs no server and no other file.

Curves, pictures, restarts, evaluation, lineage and config, from the journal and the run folder. Written at the end of
`tessera train`; by hand it is `python -m pipeline.tracking.report RUN`.
"""

import base64
import io
import json
import logging
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import UserError
from pipeline.redact import redact
from pipeline.run_folder import RunFolder
from pipeline.storage import write_bytes
from pipeline.tracking.curves import Point, draw
from pipeline.tracking.effective import breakdown
from pipeline.tracking.journal import Event, read_all_events, read_events

MAX_PICTURES = 8
PICTURE_WIDTH, SMALL_SIDE = 900, 640
GROUPS = (
    ("Validation", ("validation",)),
    ("Losses", ("loss",)),
    ("Speed", ("per_second", "stall", "mfu", "communication", "memory")),
    ("Inside", ("",)),
)
"""Headings, and the words in a metric's name that put it under one; the first that fits."""


@dataclass(frozen=True)
class Curve:
    """One metric of the page."""

    name: str
    """As in the journal."""
    last: float
    """Newest value."""
    best: tuple[float, float]
    """Least and greatest value."""
    svg: str
    """The drawing."""


@dataclass(frozen=True)
class Picture:
    """One picture of the page."""

    caption: str
    """Series and place."""
    uri: str
    """The picture itself as a data URI."""
    width: int
    """Width on the page in pixels: a whole multiple of a small picture's own, so that its pixels stay squares."""
    is_magnified: bool
    """Whether that is more than its own."""


@dataclass(frozen=True)
class Attempt:
    """One start of the run."""

    number: int
    """From 0."""
    host: str
    """Machine of rank 0."""
    begin: str
    """When, in UTC."""
    seconds: str
    """How long until its last event."""
    resumed_at: int
    """Samples seen when it began to train."""
    reached: int
    """Samples seen in its last event."""
    end: str
    """finished, stopped, failed and why, or nothing: killed or still running."""


def write_report(run_dir: Path | str) -> Path:
    """Write RUN/report.html and return its path.

    Raises:
        UserError: the folder has no journal.
    """
    import jinja2

    run = RunFolder(Path(run_dir))
    events = read_events(run.path)
    if not events:
        raise UserError(f"{run.path}: not a run folder, it has no journal")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string((Path(__file__).parent / "report.html.j2").read_text())
    attempts = _attempts(run.path)
    lineage = redact(json.loads(run.lineage.read_text())) if run.lineage.is_file() else {}
    text = template.render(
        name=lineage.get("run") or run.path.absolute().name,
        written=_moment(max(event.time_ms for event in events)),
        status=attempts[-1].end or "running, or killed",
        samples_seen=max(event.samples_seen for event in events),
        commits=sum(event.kind == "committed" for event in events),
        attempts=attempts,
        time=breakdown(read_all_events(run.path)),
        groups=_groups(events, [attempt.resumed_at for attempt in attempts[1:]]),
        pictures=_pictures(run.path, events),
        evaluation=_evaluation(run.path),
        lineage=lineage,
        config=_config(run),
    )
    write_bytes(run.report, text.encode())
    return run.report


def _groups(events: list[Event], restarts: list[int]) -> list[tuple[str, list[Curve]]]:
    """The curves under their headings."""
    series: dict[str, list[Point]] = {}
    for event in events:
        if event.kind == "metrics":
            for name, value in event.body["values"].items():
                series.setdefault(name, []).append((event.samples_seen, value))
    groups: dict[str, list[Curve]] = {title: [] for title, _ in GROUPS}
    for name, points in series.items():
        title = next(title for title, words in GROUPS if any(word in name for word in words))
        values = [y for _, y in points]
        svg = draw(points, restarts, may_be_logarithmic="share" not in name)
        groups[title].append(Curve(name, values[-1], (min(values), max(values)), svg))
    return [(title, curves) for title, curves in groups.items() if curves]


def _pictures(folder: Path, events: list[Event]) -> list[Picture]:
    """The newest picture and some before it, evenly spread, oldest first."""
    shown = [e for e in events if e.kind == "picture" and (folder / e.body["path"]).is_file()]
    count = min(MAX_PICTURES, len(shown))
    chosen = [shown[round(i * (len(shown) - 1) / max(count - 1, 1))] for i in range(count)] if count > 1 else shown
    return [_picture(f"{e.body['name']}, {e.samples_seen:,} samples", folder / e.body["path"]) for e in chosen]


def _picture(caption: str, path: Path) -> Picture:
    """A picture file as it is, or scaled down to the page's width."""
    from PIL import Image

    out = io.BytesIO()
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    if picture.width > PICTURE_WIDTH:
        height = round(picture.height * PICTURE_WIDTH / picture.width)
        picture = picture.resize((PICTURE_WIDTH, height), Image.Resampling.LANCZOS)
    picture.save(out, format="png", optimize=True)
    uri = "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
    factor = max(1, SMALL_SIDE // max(picture.size))
    return Picture(caption, uri, picture.width * factor, factor > 1)


def _attempts(folder: Path) -> list[Attempt]:
    """Every start of the run, in order."""
    by_number: dict[int, list[Event]] = {}
    for event in read_all_events(folder):
        by_number.setdefault(event.attempt, []).append(event)
    return [_attempt(number, events) for number, events in by_number.items()]


def _attempt(number: int, events: list[Event]) -> Attempt:
    resumed = next((event.samples_seen for event in events if event.kind == "resumed"), 0)
    end = events[-1].body if events[-1].kind == "ended" else {"status": "", "reason": ""}
    length = timedelta(seconds=(events[-1].time_ms - events[0].time_ms) // 1000)
    return Attempt(
        number=number,
        host=events[0].body.get("host", ""),
        begin=_moment(events[0].time_ms),
        seconds=str(length),
        resumed_at=resumed,
        reached=max([resumed, *(event.samples_seen for event in events)]),
        end=f"{end['status']}: {end['reason']}" if end["reason"] else end["status"],
    )


def _evaluation(folder: Path) -> dict[str, Any]:
    """The figures of the newest export that was evaluated."""
    found = sorted((folder / "export").glob("gen-*/evaluation.json"))
    return json.loads(found[-1].read_text()) if found else {}


def _config(run: RunFolder) -> str:
    if not run.config.is_file():
        return ""
    return yaml.safe_dump(redact(yaml.safe_load(run.config.read_text())), sort_keys=False, width=120)


def _moment(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    try:
        print(write_report(sys.argv[1]))
    except (IndexError, UserError) as problem:
        sys.exit(f"usage: python -m pipeline.tracking.report RUN ({problem})")
