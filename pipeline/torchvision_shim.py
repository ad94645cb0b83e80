"""Makes `import torchvision` possible where its compiled extension does not fit the installed torch.

torchvision registers shape functions for two box operators at import, and fails when the extension that defines them
could not be loaded. Nothing in this project calls a box operator, so declaring their schemas is enough. Called before
every import of torchvision, open_clip, lpips or torchmetrics' image models.
"""

import importlib.util
from functools import cache
from pathlib import Path

import torch

_BOX_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


@cache
def declare_missing_operators() -> bool:
    """Declare torchvision's box operators if its extension cannot load; returns whether that was needed.

    Idempotent, and without effect where torchvision is absent or whole: its own operators are then used.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or _extension_loads(Path(spec.origin).parent):
        return False
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _BOX_OPERATORS:
        library.define(schema)
    _kept.append(library)
    return True


_kept: list[torch.library.Library] = []  # a library's declarations end when the object does


def _extension_loads(folder: Path) -> bool:
    """True when the operators exist after trying the compiled extension in torchvision's `folder`."""
    for extension in sorted(folder.glob("_C*.so")) + sorted(folder.glob("_C*.pyd")):
        try:
            torch.ops.load_library(str(extension))
        except OSError:
            continue
    return hasattr(torch.ops.torchvision, "nms")
