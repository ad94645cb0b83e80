"""Emoji come out in colour, in the middle, with their names; the font's own sequences are found."""

from pathlib import Path

import numpy as np
import pytest
from PIL import features

from data_tools.draw.emoji import EmojiFont, find_font
from pipeline.config import UserError


@pytest.fixture(scope="module")
def font() -> EmojiFont:
    try:
        return EmojiFont(find_font())
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def captions(font: EmojiFont) -> dict[str, str]:
    return font.captions()


def test_there_are_thousands_with_names_of_their_own(captions: dict[str, str]) -> None:
    singles = [text for text in captions if len(text) == 1]
    assert len(singles) > 1300 and captions["\U0001f600"] == "grinning face" and captions["\u2764"] == "red heart"
    assert len(set(captions.values())) == len(captions)


@pytest.mark.skipif(not features.check("raqm"), reason="this Pillow has no libraqm: sequences are not drawn")
def test_flags_families_and_skin_tones_are_drawn_too(captions: dict[str, str]) -> None:
    assert len(captions) > 3600
    assert captions["\U0001f44b\U0001f3fd"] == "waving hand, medium skin tone"
    assert captions["\U0001f469\u200d\U0001f680"] == "woman astronaut"
    assert captions["\U0001f1eb\U0001f1f7"] == "flag of France"
    assert captions["\U0001f468\u200d\U0001f469\u200d\U0001f467"] == "family man woman girl"
    assert captions["#\ufe0f\u20e3"] == "keycap #"


def test_the_font_knows_no_cat_with_a_skin_tone(captions: dict[str, str]) -> None:
    assert "\U0001f408" in captions and "\U0001f408\U0001f3fd" not in captions


def test_a_picture_is_coloured_on_white_and_centred(font: EmojiFont) -> None:
    image = font.draw("\U0001f534", 64).astype(float)  # large red circle
    assert image.shape == (64, 64, 3) and image[0].min() == 255 and image[:, -1].min() == 255
    red = 255 - image[..., 1]
    y, x = (red.sum(axis=axis) @ (np.arange(64) + 0.5) / red.sum() for axis in (1, 0))
    assert abs(x - 32) < 1.5 and abs(y - 32) < 1.5
    assert image[32, 32, 0] > 150 > image[32, 32, 2]


def test_a_file_that_is_no_font_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.ttf").write_text("no font")
    with pytest.raises(UserError, match=r"x\.ttf"):
        EmojiFont(tmp_path / "x.ttf")
