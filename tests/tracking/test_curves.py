"""Drawn curves hide nothing: extremes survive thinning, marks stand where the values stand, ticks are round."""

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.tracking.curves import GREATEST, HEIGHT, WIDTH, Axis, draw, round_ticks, short, thin

values = st.floats(-1e6, 1e6)


@given(st.lists(values, min_size=1, max_size=500), st.integers(1, 50))
def test_thinning_keeps_extremes_and_order(ys: list[float], max_buckets: int) -> None:
    buckets = thin(list(enumerate(ys)), max_buckets)
    assert len(buckets) <= max_buckets
    assert min(b.low for b in buckets) == min(ys) and max(b.high for b in buckets) == max(ys)
    assert [b.x for b in buckets] == sorted(b.x for b in buckets)


@given(st.lists(st.floats(), max_size=300))
def test_every_drawing_is_well_formed_and_inside_its_frame(ys: list[float]) -> None:
    root = ElementTree.fromstring(draw([(8.0 * i, y) for i, y in enumerate(ys, 1)], marks=[4.0]))
    for line in root.iter("polyline"):
        for pair in line.attrib["points"].split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= WIDTH and 0 <= y <= HEIGHT
    assert len([line for line in root.iter("line") if line.attrib["class"] == "strange"]) == sum(
        not abs(y) < GREATEST for y in ys
    )


@given(values, values)
def test_ticks_are_inside_and_evenly_spaced(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    ticks = round_ticks(low, high)
    slack = 1e-9 * max(abs(low), abs(high))
    assert all(low - slack <= tick <= high + slack for tick in ticks) and len(ticks) <= 6


def test_round_ticks() -> None:
    assert round_ticks(0, 10) == [0, 5, 10]
    assert round_ticks(0.1, 0.9) == pytest.approx([0.2, 0.4, 0.6, 0.8])


def test_axes() -> None:
    assert Axis(0, 10, 0, 100).at(5) == 50
    assert Axis(1, 100, 0, 100, logarithmic=True).at(10) == pytest.approx(50)
    assert Axis(1e-4, 1, 0, 1, logarithmic=True).ticks()[-1] == 1


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (1_500_000, "1.5M"), (20_000, "20k"), (0.00012, "0.00012")])
def test_short(value: float, text: str) -> None:
    assert short(value) == text
