"""A drawn folder is whole or goes on, and never mixes two drawings."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_tools.draw.folder import fill_folder
from pipeline.config import UserError


def draw(sample_id: int) -> tuple[np.ndarray, str]:
    return np.full((4, 4, 3), sample_id, np.uint8), f"number {sample_id}"


def test_a_folder_is_filled_once(tmp_path: Path) -> None:
    assert fill_folder(tmp_path, {"num": 3}, 3, draw)
    assert sorted(p.name for p in tmp_path.glob("[0-9]*")) == [f"{n:06d}.{e}" for n in range(3) for e in ("png", "txt")]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "000002.png")), draw(2)[0])
    assert (tmp_path / "000002.txt").read_text() == "number 2"
    assert not fill_folder(tmp_path, {"num": 3}, 3, draw), "whole already"


def test_an_interrupted_folder_goes_on(tmp_path: Path) -> None:
    drawn = []

    def interrupted(sample_id: int) -> tuple[np.ndarray, str]:
        drawn.append(sample_id)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return draw(sample_id)

    with pytest.raises(KeyboardInterrupt):
        fill_folder(tmp_path, {}, 4, interrupted)
    assert fill_folder(tmp_path, {}, 4, interrupted)
    assert drawn == [0, 1, 2, 2, 3] and len(list(tmp_path.glob("*.txt"))) == 4


def test_other_drawings_are_refused(tmp_path: Path) -> None:
    fill_folder(tmp_path, {"size": 32, "seed": 0}, 1, draw)
    with pytest.raises(UserError, match="size: 32 -> 64"):
        fill_folder(tmp_path, {"size": 64, "seed": 0}, 1, draw)
