"""Curves as inline SVG, drawn from numbers alone: no plotting library, no script, readable on any page.

Long curves are thinned into buckets whose spread is drawn as a band, so that no spike disappears; values that are not
finite are red marks on the ground line. Called by the report.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[float, float]

WIDTH, HEIGHT = 440.0, 200.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 12.0, 10.0, 24.0
MAX_BUCKETS = 220
LEAST, GREATEST = 1e-100, 1e100
"""Smaller magnitudes are drawn as zero, greater ones as not finite: arithmetic on the axis stays safe."""

LOG_RATIO = 50.0
"""Positive values whose means span more than this factor are drawn on a logarithmic axis."""


@dataclass(frozen=True)
class Bucket:
    """Neighbouring points of a curve."""

    x: float
    """Mean place."""
    low: float
    """Least value."""
    mean: float
    """Mean value."""
    high: float
    """Greatest value."""


@dataclass(frozen=True)
class Axis:
    """Maps values to pixels, straight or by logarithm."""

    low: float
    high: float
    begin: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Pixel of `value`."""
        low, high, value = (math.log10(v) if self.logarithmic else v for v in (self.low, self.high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.begin + share * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """A few round values inside the axis."""
        if self.logarithmic:
            decades = [10.0**e for e in range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)]
            inside = [d for d in decades if self.low <= d <= self.high]
            return inside[:: max(1, len(inside) // 4)] if len(inside) > 1 else [self.low, self.high]
        return round_ticks(self.low, self.high)


def draw(points: Sequence[Point], marks: Sequence[float] = (), may_be_logarithmic: bool = True) -> str:
    """One curve as an `<svg>` element.

    Args:
        points: (samples seen, value) in order; values may be nan or inf.
        marks: places of restarts, drawn as dashed lines.
        may_be_logarithmic: a logarithmic axis for values that span decades; false for shares, whose zero means zero.
    """
    finite = [(x, y if abs(y) > LEAST else 0.0) for x, y in points if abs(y) < GREATEST]
    strange = [x for x, y in points if not abs(y) < GREATEST]
    x_axis = Axis(0.0, max((x for x, _ in points), default=1.0) or 1.0, LEFT, WIDTH - RIGHT)
    body = [_line(x_axis.at(x), TOP, x_axis.at(x), HEIGHT - BOTTOM, "restart") for x in marks if x <= x_axis.high]
    if finite:
        buckets = thin(finite)
        y_axis = _value_axis(buckets, may_be_logarithmic)
        body = _grid(x_axis, y_axis) + body + _curve(buckets, x_axis, y_axis)
    body += [_line(x_axis.at(x), HEIGHT - BOTTOM - 8, x_axis.at(x), HEIGHT - BOTTOM, "strange") for x in strange]
    return f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img">{"".join(body)}</svg>'


def thin(points: Sequence[Point], max_buckets: int = MAX_BUCKETS) -> list[Bucket]:
    """Points in order as at most `max_buckets` buckets of equally many points; each extreme stays an extreme."""
    size = math.ceil(len(points) / max_buckets)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [
        Bucket(
            sum(x for x, _ in group) / len(group),
            min(y for _, y in group),
            sum(y for _, y in group) / len(group),
            max(y for _, y in group),
        )
        for group in groups
    ]


def round_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` values 1, 2 or 5 times a power of ten apart, inside [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def short(value: float) -> str:
    """A number for an axis: 1500000 as 1.5M, 0.00012 as 0.00012."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.4g}{unit}"
    return f"{value:.3g}"


def _value_axis(buckets: Sequence[Bucket], may_be_logarithmic: bool) -> Axis:
    low, high = min(b.low for b in buckets), max(b.high for b in buckets)
    if may_be_logarithmic and low > 0 and max(b.mean for b in buckets) / min(b.mean for b in buckets) > LOG_RATIO:
        return Axis(low, high, HEIGHT - BOTTOM, TOP, logarithmic=True)
    margin = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return Axis(low - margin, high + margin, HEIGHT - BOTTOM, TOP)


def _grid(x_axis: Axis, y_axis: Axis) -> list[str]:
    rows = []
    for value in y_axis.ticks():
        y = y_axis.at(value)
        rows += [_line(LEFT, y, WIDTH - RIGHT, y, "grid"), _label(LEFT - 6, y + 3.5, "end", short(value))]
    rows += [_label(x_axis.at(v), HEIGHT - 7, "middle", short(v)) for v in x_axis.ticks()]
    return [*rows, _line(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM, "axis")]


def _curve(buckets: Sequence[Bucket], x_axis: Axis, y_axis: Axis) -> list[str]:
    xs = [x_axis.at(b.x) for b in buckets]
    upper = [f"{x:.1f},{y_axis.at(b.high):.1f}" for x, b in zip(xs, buckets, strict=True)]
    lower = [f"{x:.1f},{y_axis.at(b.low):.1f}" for x, b in zip(xs, buckets, strict=True)]
    middle = [f"{x:.1f},{y_axis.at(b.mean):.1f}" for x, b in zip(xs, buckets, strict=True)]
    last_x, last_y = middle[-1].split(",")
    return [
        f'<polygon class="band" points="{" ".join(upper + lower[::-1])}"/>',
        f'<polyline class="curve" points="{" ".join(middle)}"/>',
        f'<circle class="last" cx="{last_x}" cy="{last_y}" r="2.6"/>',
    ]


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _label(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'
