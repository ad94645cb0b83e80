"""Several pictures on one sheet, with captions or in rows: what previews, `tessera sample` and `evaluate` show."""

import math
import textwrap
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SMALLEST_TILE = 128
"""Pictures below this side, in pixels, are enlarged by a whole factor, so that a caption fits under them."""
FONT_SIZE = 11
MARGIN = 4


def captioned_grid(images: np.ndarray, captions: Sequence[str], columns: int | None = None) -> np.ndarray:
    """Lay out `images` (uint8 [N, H, W, 3], N > 0) row by row over white; uint8 [H', W', 3].

    Args:
        captions: one text for each picture, wrapped to its width; empty texts take no room.
        columns: pictures in a row; the default makes the sheet nearly square.
    """
    assert len(images) == len(captions) > 0
    columns = columns or math.ceil(math.sqrt(len(images)))
    factor = max(1, math.ceil(SMALLEST_TILE / images.shape[2]))
    height, width = images.shape[1] * factor, images.shape[2] * factor
    font = ImageFont.load_default(FONT_SIZE)
    texts = [_wrap(caption, width, font) for caption in captions]
    text_height = (FONT_SIZE + 3) * max(len(lines) for lines in texts)
    rows = math.ceil(len(images) / columns)
    cell_width, cell_height = width + MARGIN, height + text_height + MARGIN
    sheet = Image.new("RGB", (columns * cell_width + MARGIN, rows * cell_height + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (image, lines) in enumerate(zip(images, texts, strict=True)):
        left, top = MARGIN + i % columns * cell_width, MARGIN + i // columns * cell_height
        sheet.paste(Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST), (left, top))
        for row, line in enumerate(lines):
            pen.text((left, top + height + row * (FONT_SIZE + 3)), line, fill="black", font=font)
    return np.asarray(sheet)


def one_above_another(*rows: Tensor) -> np.ndarray:
    """Rows of pictures, uint8 [N, 3, H, W] each, without a gap: uint8 [rows * H, N W, 3]."""
    lines = [torch.cat(list(row), dim=2) for row in rows]  # [3, H, N W]
    return torch.cat(lines, dim=1).permute(1, 2, 0).cpu().numpy()


def _wrap(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> list[str]:
    """Lines of `text` that are at most about `width` pixels long."""
    letters = max(8, int(width / font.getlength("abcdefghij") * 10))
    return textwrap.wrap(text, letters)
