"""What failed is tried again alone: the tree becomes that of a run in which it had not failed, after any kill."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_tools.shard import ShardConfig, WorkConfig, shard_dataset
from data_tools.sources.open import open_source
from data_tools.web import WebConfig
from pipeline.config import UserError
from tests.data_tools.test_checks import flip
from tests.data_tools.test_shard import tree
from tests.data_tools.test_web import PICTURES
from tests.data_tools.web_server import serving
from tests.source import ROOT

CONFIG = ShardConfig(resize="none", samples_per_shard=5)
WEB = WebConfig(num_retries=0, timeout_seconds=2.0, num_threads=4)


def shard(table: Path, out: Path, retry_failed: bool = False) -> dict:
    work = WorkConfig(web=WEB, retry_failed=retry_failed)
    return shard_dataset(open_source(str(table)), str(table), str(out), CONFIG, work)


def test_only_what_failed_is_asked_for_again(tmp_path: Path) -> None:
    with serving(PICTURES) as site:
        names = [f"{'once/' if n % 7 == 0 else ''}{n}.jpg" for n in range(20)] + ["gone.jpg"]
        rows = [f"{site.url}/{name},caption {n}" for n, name in enumerate(names)]
        (tmp_path / "t.csv").write_text("\n".join(["url,caption", *rows]) + "\n")
        assert shard(tmp_path / "t.csv", tmp_path / "out")["failures"] == {"HTTP 503": 3, "HTTP 404": 1}
        before = tree(tmp_path / "out")
        assert shard(tmp_path / "t.csv", tmp_path / "out")["written_now"] == 0 and tree(tmp_path / "out") == before
        summary = shard(tmp_path / "t.csv", tmp_path / "out", retry_failed=True)
        assert summary["failures"] == {"HTTP 404": 1} and summary["samples"] == 20 and summary["written_now"] <= 4
        assert {site.asked[f"/{name}"] for name in names if "/" not in name and "gone" not in name} == {1}
        shard(tmp_path / "t.csv", tmp_path / "calm")
    assert tree(tmp_path / "out") == tree(tmp_path / "calm")


@pytest.fixture
def halves(tmp_path: Path) -> Path:
    """`out`: one shard of which two pictures were missing, which are there now; `calm`: made with them."""
    (tmp_path / "in").mkdir()
    rows = [f"in/{name},caption {name}" for name in list(PICTURES)[:5]]
    (tmp_path / "t.csv").write_text("\n".join(["path,caption", *rows]) + "\n")
    for name in ("0.jpg", "3.jpg", "4.jpg"):
        (tmp_path / "in" / name).write_bytes(PICTURES[name])
    assert shard(tmp_path / "t.csv", tmp_path / "out")["failures"] == {"no such file": 2}
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / "in" / name).write_bytes(PICTURES[name])
    shard(tmp_path / "t.csv", tmp_path / "calm")
    return tmp_path


def test_a_kill_after_any_write_loses_nothing(halves: Path) -> None:
    """SIGKILL after the n-th file has its name; what was found stays though its sources are gone, and all ends well."""
    code = (
        "import os, sys; from pipeline import storage; from data_tools.__main__ import main\n"
        "left, sync = [int(sys.argv.pop(1))], storage.sync_directory\n"
        "def die(folder): sync(folder); left[0] -= 1; left[0] or os.kill(os.getpid(), 9)\n"
        "storage.sync_directory = die; main()\n"
    )
    words = ["--samples-per-shard", "5", "--num-workers", "1", "--retry-failed"]
    for number in range(1, 7):
        out = halves / f"out-{number}"
        shutil.copytree(halves / "out", out)
        command = [sys.executable, "-c", code, str(number), "shard", "t.csv", "--out", str(out), *words]
        killed = subprocess.run(command, cwd=halves, env={"PYTHONPATH": str(ROOT)}, capture_output=True, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
        assert not (out / "manifest.json").exists()
        (halves / "in/0.jpg").rename(halves / "in/away")  # a source that was read long ago
        assert shard(halves / "t.csv", out)["samples"] == 5, number
        (halves / "in/away").rename(halves / "in/0.jpg")
        assert tree(out) == tree(halves / "calm"), number


def test_a_damaged_shard_is_not_made_to_look_right(halves: Path) -> None:
    tar = halves / "out/00000.tar"
    flip(tar, tar.read_bytes().index(b"caption"))
    with pytest.raises(UserError, match="00000.tar is damaged: .* has other bytes .* --repair"):
        shard(halves / "t.csv", halves / "out", retry_failed=True)
