"""One self-contained HTML page about a dataset, to open anywhere. Called by `tessera-data report`."""

import base64
import io
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import jinja2
from PIL import Image

from data_tools.survey import Survey, sights, survey
from pipeline import storage

NUM_PICTURES = 48
THUMBNAIL_PIXELS = 144
NUM_ROWS = 10
NUM_WORDS = 24
LOST = "Left out, by reason"
ASPECTS = {
    "1 : 2 and taller": 1 / 2, "9 : 16": 9 / 16, "2 : 3": 2 / 3, "3 : 4": 3 / 4, "square": 1.0,
    "4 : 3": 4 / 3, "3 : 2": 3 / 2, "16 : 9": 16 / 9, "2 : 1 and wider": 2.0,
}  # fmt: skip
"""Width to height."""

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Bar:
    """One row of a bar chart."""

    label: str
    count: int
    share: float
    """Of the longest bar, 0 to 1."""


@dataclass(frozen=True)
class Thumbnail:
    """One picture of the contact sheet."""

    key: str
    caption: str
    source: str
    """data: URL."""


def write_report(url: str, out: str) -> Survey:
    """Look at the dataset `url` and write the page `out`; what was counted.

    Raises:
        UserError: no manifest, or a shard is gone.
    """
    found = survey(url)
    thumbnails = [
        Thumbnail(sight.key, sight.caption, _thumbnail(sight.image))
        for sight in sights(url, found.manifest, NUM_PICTURES)
    ]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("data_tools", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("report.html.j2").render(
        url=url, manifest=found.manifest, facts=_facts(found), charts=_charts(found), thumbnails=thumbnails, lost=LOST
    )
    storage.write_bytes(out, page.encode())
    return found


def _facts(found: Survey) -> dict[str, str]:
    """The numbers at the head of the page."""
    return {
        "samples": f"{found.manifest.num_samples:,}",
        "shards": f"{len(found.manifest.shards):,}",
        "megabytes": f"{found.manifest.num_bytes / 1e6:,.1f}",
        "left out": f"{found.failures.total():,}",
        "without caption": f"{found.caption_lengths[0]:,}",
        "different captions": f"{len(found.captions):,}",
        "repeated pictures": f"{found.pictures.total() - len(found.pictures):,}",
    }


def _charts(found: Survey) -> dict[str, list[Bar]]:
    """Title -> bars; a chart without bars is not shown."""
    repeated = Counter({caption: count for caption, count in found.captions.items() if caption and count > 1})
    return {
        LOST: _bars(found.failures.most_common(NUM_ROWS)),
        "Size as stored": _bars(found.sizes.most_common(NUM_ROWS), _size_label),
        "Size as found": _bars(found.original_sizes.most_common(NUM_ROWS), _size_label),
        "Width to height, as found": _bars(_aspects(found.original_sizes).items()),
        "Words in a caption": _bars(sorted(_binned(found.caption_lengths).items()), _range_label),
        "Captions that come most often": _bars(repeated.most_common(NUM_ROWS)),
        "Words that come most often": _bars(found.words.most_common(NUM_WORDS)),
    }


def _bars(rows: Iterable[tuple[K, int]], label: Callable[[K], str] = str) -> list[Bar]:
    rows = list(rows)
    longest = max((count for _, count in rows), default=1)
    return [Bar(label(key), count, count / longest) for key, count in rows]


def _size_label(size: tuple[int, int]) -> str:
    return f"{size[0]} × {size[1]}"


def _aspects(sizes: Counter[tuple[int, int]]) -> dict[str, int]:
    """Counts by the usual ratios, from the tall to the wide; a picture goes to the nearest by ratio of ratios."""
    counts = dict.fromkeys(ASPECTS, 0)
    for (width, height), count in sizes.items():
        if width and height:
            counts[min(ASPECTS, key=lambda name: abs(math.log(ASPECTS[name] * height / width)))] += count
    return {name: count for name, count in counts.items() if count}


def _binned(lengths: Counter[int]) -> Counter[tuple[int, int]]:
    """Lengths gathered in about `NUM_ROWS` ranges (first, last) of equal width."""
    width = max(1, -(-(max(lengths, default=0) + 1) // (2 * NUM_ROWS)))
    bins: Counter[tuple[int, int]] = Counter()
    for length, count in lengths.items():
        first = length // width * width
        bins[first, first + width - 1] += count
    return bins


def _range_label(bounds: tuple[int, int]) -> str:
    return str(bounds[0]) if bounds[0] == bounds[1] else f"{bounds[0]} to {bounds[1]}"


def _thumbnail(image: Image.Image) -> str:
    """The picture as a data: URL: small ones enlarged by whole pixels, large ones filtered down."""
    longest = max(image.size)
    if longest <= THUMBNAIL_PIXELS:
        factor = THUMBNAIL_PIXELS // longest
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    else:
        image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "PNG" if longest <= THUMBNAIL_PIXELS else "JPEG")
    kind = "png" if longest <= THUMBNAIL_PIXELS else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
