"""Caption accuracy of pictures whose faults are known."""

import numpy as np

from pipeline.data.shapes import draw_shape
from pipeline.evaluate.captions import CaptionMeter

CAPTIONS = (
    "a large red circle at the center on a white background",
    "a large blue square at the left on a yellow background",
    "a large green star at the top on a black background",
)


def drawings(captions: tuple[str, ...]) -> np.ndarray:
    return np.stack([draw_shape(0, i, 32, [caption])[0] for i, caption in enumerate(captions)])


def test_true_drawings_are_all_right() -> None:
    meter = CaptionMeter()
    meter.update(drawings(CAPTIONS), CAPTIONS)
    assert set(meter.compute().values()) == {1.0}


def test_each_fault_counts_once() -> None:
    shown = (CAPTIONS[0], CAPTIONS[1].replace("blue", "red"), CAPTIONS[2].replace("top", "bottom"))
    meter = CaptionMeter()
    for i in range(3):  # in batches of one, as of several
        meter.update(drawings(shown)[i : i + 1], CAPTIONS[i : i + 1])
    figures = meter.compute()
    assert figures["caption_accuracy_all"] == 1 / 3
    assert figures["caption_accuracy_colour"] == figures["caption_accuracy_place"] == 2 / 3
    assert figures["caption_accuracy_size"] == figures["caption_accuracy_shape"] == 1.0
    assert abs(figures["caption_accuracy"] - 13 / 15) < 1e-12


def test_captions_of_other_things_are_passed_over() -> None:
    meter = CaptionMeter()
    meter.update(drawings(CAPTIONS[:1]), ["a photo of a cat"])
    assert meter.compute() == {}
    meter.update(drawings(CAPTIONS[:1]), CAPTIONS[:1])
    assert meter.compute()["caption_accuracy"] == 1.0
