"""The torture corpus comes out as a person would see it, or is refused; every file has one right result."""

import io

import numpy as np
import pytest
from PIL import Image

from data_tools.pixels.header import BadImage
from data_tools.pixels.prepare import prepare
from pipeline.data.decode import decode_image
from tests.data_tools.torture import Case, corpus

CASES = {case.name: case for case in corpus()}


def psnr(found: np.ndarray, wanted: np.ndarray) -> float:
    """dB; infinite for equal pictures."""
    error = np.square(found.astype(float) - wanted).mean()
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)


def test_there_is_one_case_for_each_name() -> None:
    assert len(CASES) == sum(1 for _ in corpus()) >= 60


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_case(case: Case) -> None:
    if case.wanted is None:
        with pytest.raises(BadImage, match=case.reason or "."):
            prepare(case.data, "none", None, "png")
        return
    found = prepare(case.data, "none", None, "png")
    stored = Image.open(io.BytesIO(found.data))
    pixels = np.asarray(stored)
    assert stored.mode == "RGB" and pixels.shape == case.wanted.shape
    assert (found.original_height, found.original_width) == case.wanted.shape[:2]
    assert psnr(pixels, case.wanted) >= case.psnr
    assert np.array_equal(decode_image(found.data), pixels), "training sees what was stored"
    jpeg = prepare(case.data, "none", None, "jpg")
    assert Image.open(io.BytesIO(jpeg.data)).mode == "RGB" and psnr(decode_image(jpeg.data), case.wanted) >= min(
        case.psnr, 30
    )


@pytest.mark.parametrize("mode", ["center_crop", "keep_ratio", "keep_ratio_largest", "border"])
def test_every_mode_survives_the_corpus(mode: str) -> None:
    for case in CASES.values():
        try:
            found = prepare(case.data, mode, 16, "jpg")  # type: ignore[arg-type]
        except BadImage:
            assert case.wanted is None, case.name
        else:
            assert case.wanted is not None, case.name
            assert 16 in (found.width, found.height), case.name
