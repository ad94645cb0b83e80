"""The stamp under which a figure may be compared with another: what was measured, on what, with which code.

Called by the evaluation command and the registry's gates; two figures are comparable when their stamps are equal.
"""

from importlib.metadata import version
from typing import Any

RECONSTRUCTION = {
    "name": "reconstruction-2",
    "pixels": "8 bit, floor(clamp(127.5 x + 128, 0, 255))",
    "psnr": "per picture over RGB, peak 255, at most 100 dB, mean over pictures",
    "ssim": "per picture over RGB, peak 255, 11 x 11 Gaussian of sigma 1.5 inside the picture",
    "codebook": "share of codes used and exp(entropy) over the whole set",
    "crop": "short side to image_size (area filter to shrink, cubic to grow), the middle cut out",
    "average": "every sample once, no padding",
}
"""How `reconstruction` measures."""
LPIPS = "version 0.1 on VGG16, of 8-bit pictures as [-1, 1], mean over pictures"
"""How `judge` measures LPIPS."""
RFID = "reconstructions against the same pictures, both 8 bit, Inception of 2015 at 299 pixels, unbiased covariances"
"""How `judge` measures rFID: the reference set is the data of the stamp."""


def stamp(protocol: dict[str, str], data_digest: str, num_samples: int, image_size: int) -> dict[str, Any]:
    """The protocol with the data it was run on and the versions of the measuring code."""
    return {
        **protocol,
        "data_digest": data_digest,
        "num_samples": num_samples,
        "image_size": image_size,
        "versions": {package: version(package) for package in ("torch", "torchmetrics")},
    }
