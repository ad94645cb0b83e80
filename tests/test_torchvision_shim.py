"""torchvision can be imported wherever its Python part is installed, and a whole installation is left alone."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline import torchvision_shim
from pipeline.torchvision_shim import declare_missing_operators

ROOT = Path(__file__).parents[1]


def test_torchvision_imports_in_a_fresh_process() -> None:
    program = (
        "from pipeline.torchvision_shim import declare_missing_operators as declare; declare(); declare();"
        "import torchvision; print(torchvision.transforms.functional.hflip.__name__)"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.strip() == "hflip", result.stderr


def test_importing_the_module_touches_nothing() -> None:
    program = "import sys, pipeline.torchvision_shim; print('torchvision' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.strip() == "False", result.stderr


def test_operators_exist_afterwards() -> None:
    declare_missing_operators()
    assert hasattr(torch.ops.torchvision, "nms")


def test_without_torchvision_nothing_is_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert torchvision_shim.declare_missing_operators.__wrapped__() is False
