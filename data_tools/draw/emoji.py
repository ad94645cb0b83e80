"""Emoji with their Unicode names as captions, rendered from the Noto Color Emoji font of the system.

The list of emoji is that of the package `emoji` (Unicode's emoji-test with the names of CLDR); the font's bitmaps are
136 x 128 pixels. Single code points need plain Pillow; sequences (flags, families, skin tones) need a Pillow that can
shape text with libraqm. A sequence that the font knows comes out as one glyph, so the font itself tells which of the
list it can draw. Called by `tessera-data draw emoji`.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import emoji
import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from pipeline.config import UserError

FONT_NAME = "NotoColorEmoji.ttf"
BITMAP_PIXELS = 109
"""The one size at which this bitmap font can be opened."""

CANVAS = 136
PICTURE_STYLE = "\ufe0f"
_FLAG = re.compile("[\U0001f1e6-\U0001f1ff]{2}|\U0001f3f4[\U000e0061-\U000e007f]+")
"""Two regional letters, or a black flag with the tags of a part of a country."""
_TONES = re.compile(r"((?: (?:medium-)?(?:light|dark)| medium) skin tone)")


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
        """Text to draw -> caption, in the order of Unicode's list: every emoji of it that this font can draw."""
        return {text: caption for text, caption in _named_emoji() if self._is_drawn(text)}

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
        """Whether `text` comes out as one glyph; parts that do not join are set side by side, each as wide as one."""
        if not self._joins and len(text) > 1:
            return False
        one_glyph = self._font.getlength(text) == self._font.getlength("\U0001f600")
        return bool(one_glyph) and self._font.getmask(text, mode="RGBA").getbbox() is not None


def _named_emoji() -> Iterator[tuple[str, str]]:
    """(text, caption) of every emoji of Unicode's list, in the form that it recommends."""
    wanted = (emoji.STATUS["component"], emoji.STATUS["fully_qualified"])
    for text, entry in sorted(emoji.EMOJI_DATA.items()):
        if entry["status"] in wanted:
            plain = text.removesuffix(PICTURE_STYLE)  # one code point where one is enough, for Pillow without raqm
            yield plain if len(plain) == 1 else text, _caption(plain, entry["en"])


def _caption(text: str, name: str) -> str:
    """The name as words: `:waving_hand_dark_skin_tone:` -> `waving hand, dark skin tone`; a country is its flag."""
    words = name.strip(":").replace("_", " ")
    return f"flag of {words}" if _FLAG.fullmatch(text) else _TONES.sub(r",\1", words)
