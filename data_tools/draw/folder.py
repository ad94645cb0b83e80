"""A folder of drawn pictures, 000000.png beside 000000.txt: made once, gone on with after a kill, never mixed.

Called by the drawers of this package, which hand over a function from a number to (picture, caption).
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_tools.progress import track
from pipeline import storage
from pipeline.config import UserError, config_differences

MARKER_NAME = ".drawn.json"
"""Says what the folder holds and whether it is whole. Hidden, so that no reader of folders takes it for a caption."""


def fill_folder(folder: Path, recipe: dict[str, Any], num: int, draw: Callable[[int], tuple[np.ndarray, str]]) -> bool:
    """Write the pictures `draw(0) ... draw(num - 1)` (uint8 [H, W, 3], caption) that are not there yet.

    A caption is written after its picture, so a caption that is there stands for a whole sample.

    Returns:
        False when the folder was whole already and nothing was done.

    Raises:
        UserError: the folder holds drawings of another `recipe`.
    """
    marker = folder / MARKER_NAME
    if marker.exists():
        state = storage.read_json(marker)
        changes = config_differences(state["recipe"], recipe)
        if changes:
            raise UserError(f"{folder}: holds other drawings ({', '.join(changes)}); choose another --out")
        if state["whole"]:
            return False
    storage.write_json(marker, {"recipe": recipe, "whole": False})
    there = set(storage.list_names(folder))
    for sample_id in track(range(num), num, f"drawing into {folder}"):
        name = f"{sample_id:06d}"
        if f"{name}.txt" not in there:
            image, caption = draw(sample_id)
            (folder / f"{name}.png").write_bytes(_png(image))
            (folder / f"{name}.txt").write_text(caption, encoding="utf-8")
    storage.write_json(marker, {"recipe": recipe, "whole": True})
    return True


def _png(image: np.ndarray) -> bytes:
    """Encoded in memory, for Pillow writes to a file in many small pieces."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=6)
    return file.getvalue()
