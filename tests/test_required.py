"""Where everything is required, a skipped test is a failed one; elsewhere it is skipped and named."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.source import ROOT

SUITE = """
import pytest

def test_good():
    pass

def test_skips():
    pytest.skip("no font")

@pytest.mark.skipif(True, reason="no GPU")
def test_is_skipped():
    pass

@pytest.mark.xfail
def test_is_known_to_fail():
    assert False
"""
ABSENT = "import pytest\n\npytest.importorskip('no_such_module')\n"


@pytest.mark.parametrize(
    ("required", "suite", "end"),
    [
        ("0", SUITE, "1 passed, 2 skipped, 1 xfailed"),
        ("1", SUITE, "1 failed, 1 passed, 1 xfailed, 1 error"),
        ("0", ABSENT, "1 skipped"),
        ("1", ABSENT, "1 error"),
    ],
)
def test_skips(required: str, suite: str, end: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests/conftest.py", tmp_path)
    (tmp_path / "test_suite.py").write_text(suite)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."]
    environment = {**os.environ, "TESSERA_REQUIRE_ALL": required, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1].startswith(end), done.stdout
