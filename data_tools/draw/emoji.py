"""Emoji with their Unicode names as captions, rendered from the Noto Color Emoji font of the system.

The font's bitmaps are 136 x 128 pixels. Single code points need plain Pillow; sequences (skin tones, "woman with
rocket") need a Pillow that can shape text with libraqm. A sequence that the font knows comes out as one glyph, so the
font itself tells which of the candidates exist. Called by `tessera-data draw emoji`.
"""

import shutil
import subprocess
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from pipeline.config import UserError

FONT_NAME = "NotoColorEmoji.ttf"
BITMAP_PIXELS = 109
"""The one size at which this bitmap font can be opened."""

CANVAS = 136
BLOCKS = (range(0xA9, 0xAF), range(0x2000, 0x3300), range(0x1F000, 0x1FB00))
JOINER, PICTURE_STYLE = "\u200d", "\ufe0f"
SKIN_TONES = {
    "\U0001f3fb": "light",
    "\U0001f3fc": "medium-light",
    "\U0001f3fd": "medium",
    "\U0001f3fe": "medium-dark",
    "\U0001f3ff": "dark",
}
GENDERS = {"\u2640": "woman", "\u2642": "man"}
PEOPLE = {"\U0001f468": "man", "\U0001f469": "woman", "\U0001f9d1": "person"}


def find_font() -> Path:
    """The path of the emoji font: fontconfig's answer, or the folder where Debian puts it.

    Raises:
        UserError: not installed.
    """
    places = [Path("/usr/share/fonts/truetype/noto") / FONT_NAME]
    if shutil.which("fc-match"):
        answer = subprocess.run(["fc-match", "-f", "%{file}", "Noto Color Emoji"], capture_output=True, text=True)
        places.insert(0, Path(answer.stdout))
    for place in places:
        if place.name == FONT_NAME and place.is_file():
            return place
    raise UserError(f"{FONT_NAME}: no such font here; apt-get install fonts-noto-color-emoji, or give --font PATH")


class EmojiFont:
    """The emoji that a font can draw, and their pictures."""

    def __init__(self, path: Path) -> None:
        self._joins = bool(features.check("raqm"))
        layout = ImageFont.Layout.RAQM if self._joins else ImageFont.Layout.BASIC
        try:
            self._font = ImageFont.truetype(str(path), BITMAP_PIXELS, layout_engine=layout)
        except OSError as error:
            raise UserError(f"{path}: {error}; give a bitmap emoji font such as {FONT_NAME}") from None

    def captions(self) -> dict[str, str]:
        """Text to draw -> caption: single code points in their order, then the sequences that this font knows."""
        found = {text: name for text, name in _named_symbols() if self._is_drawn(text)}
        if self._joins:
            pairs = dict(filter(self._is_one_glyph, _pairs(found)))
            found |= pairs | dict(filter(self._is_one_glyph, _toned(found | pairs)))
        return found

    def draw(self, text: str, image_size: int) -> np.ndarray:
        """The picture of one emoji on white: uint8 [image_size, image_size, 3], filtered down from the bitmap."""
        canvas = Image.new("RGBA", (CANVAS, CANVAS), "white")
        layer = Image.new("RGBA", canvas.size)
        box = self._font.getbbox(text)
        corner = ((CANVAS - box[2] + box[0]) / 2 - box[0], (CANVAS - box[3] + box[1]) / 2 - box[1])
        ImageDraw.Draw(layer).text(corner, text, font=self._font, embedded_color=True)
        image = Image.alpha_composite(canvas, layer).convert("RGB")
        return np.asarray(image.resize((image_size, image_size), Image.Resampling.LANCZOS))

    def _is_drawn(self, text: str) -> bool:
        mask = self._font.getmask(text, mode="RGBA")
        return mask.getbbox() is not None

    def _is_one_glyph(self, candidate: tuple[str, str]) -> bool:
        """True when the parts join; parts that do not are set side by side, each as wide as one."""
        return bool(self._font.getlength(candidate[0]) == self._font.getlength("\U0001f600"))


def _named_symbols() -> Iterator[tuple[str, str]]:
    """(character, lower-case name) of every symbol or punctuation mark in the blocks where emoji live."""
    for block in BLOCKS:
        for text in map(chr, block):
            name = unicodedata.name(text, "")
            if name and unicodedata.category(text)[0] in "SP" and text not in SKIN_TONES:
                yield text, name.lower().removeprefix("emoji component ")


def _pairs(singles: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(text, caption) of every candidate of two joined parts: anything + gender sign, person + thing."""
    for base, name in singles.items():
        for sign, word in GENDERS.items():
            yield base + JOINER + sign + PICTURE_STYLE, f"{name}, {word}"
        for person, word in PEOPLE.items():
            if base not in GENDERS:
                yield person + JOINER + base, f"{word} with {name}"


def _toned(known: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(text, caption) of everything known with each skin tone after its first part, where that may be a human."""
    for text, name in known.items():
        for tone, word in SKIN_TONES.items():
            yield text[0] + tone + text[1:], f"{name}, {word} skin tone"
