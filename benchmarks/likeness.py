"""How like two sets of pictures are, in dB of PSNR. Called by `benchmarks.sharding` and `benchmarks.torture`."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from pipeline.data.tar import parse_samples

NUM_COMPARED = 500


def print_likeness(folder: Path, photos: Sequence[Path], size: int) -> None:
    """PSNR between the first two outputs in `folder`, by caption, and of each against the exact means."""
    outputs = {"ours": samples_of(min(folder.glob("ours-*"))), "img2dataset": samples_of(min(folder.glob("theirs-*")))}
    mine, theirs = outputs.values()
    assert len(mine) == len(theirs) == len(photos), (len(mine), len(theirs), len(photos))
    captions = sorted(mine)[:NUM_COMPARED]
    values = [psnr(mine[caption], theirs[caption]) for caption in captions]
    print(f"\nPSNR between the outputs: median {np.median(values):.1f} dB, least {min(values):.1f} dB")
    wanted = [exact(photos[int(caption.split()[2])], size) for caption in captions]
    for name, samples in outputs.items():
        found = [psnr(samples[caption], picture) for caption, picture in zip(captions, wanted, strict=True)]
        print(f"PSNR against float area means of the full decode: {name} median {np.median(found):.2f} dB")


def samples_of(folder: Path) -> dict[str, np.ndarray]:
    """Caption without commas -> pixels, blue first."""
    found = {}
    for path in folder.glob("*.tar"):
        for sample in parse_samples(path.read_bytes()):
            pixels = cv2.imdecode(np.frombuffer(sample.members["jpg"], np.uint8), cv2.IMREAD_COLOR)
            found[sample.members["txt"].decode().replace(",", " ")] = pixels
    return found


def exact(photo: Path, size: int) -> np.ndarray:
    """float64 [size, size, 3]: the means of equal squares of pixels."""
    full = cv2.imread(str(photo)).astype(np.float64)
    factor = len(full) // size
    return full.reshape(size, factor, size, factor, 3).mean(axis=(1, 3))


def psnr(found: np.ndarray, wanted: np.ndarray) -> float:
    """dB."""
    return 10 * np.log10(255**2 / np.square(found.astype(float) - wanted).mean())
