"""The report as a browser shows it: headless Chromium lays it out, with all pictures, nothing cut off, no network."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_tools.report import write_report
from data_tools.shard import ShardConfig
from tests.data_tools.test_shard import shard_dataset

PROBE = """<!doctype html>
<iframe id="page" src="report.html" style="width: {width}px; height: 900px"></iframe><pre id="out"></pre>
<script>
page.onload = () => {{
  const view = page.contentDocument, root = view.documentElement;
  const images = [...view.images];
  const bars = [...view.querySelectorAll("svg rect")].map(rect => rect.getBoundingClientRect().width);
  out.textContent = JSON.stringify({{
    images: images.length, broken: images.filter(image => !image.naturalWidth).length,
    overflow: root.scrollWidth - root.clientWidth, bars: bars.length, widest: Math.max(...bars),
    requests: page.contentWindow.performance.getEntriesByType("resource")
      .filter(entry => !entry.name.startsWith("data:")).length,
    text: view.body.innerText, small: images.filter(image => image.getBoundingClientRect().width < 40).length,
  }});
}};
</script>"""


def chromium(folder: Path, *arguments: str) -> str:
    """What headless Chromium prints."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--hide-scrollbars"]
    options += [f"--user-data-dir={folder}/profile", "--disable-dev-shm-usage", "--virtual-time-budget=5000"]
    done = subprocess.run(
        [program, *options, *arguments], capture_output=True, text=True, check=False, timeout=120, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page about pictures of many shapes, with long captions, markup in them, duplicates and failures."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "in").mkdir()
    rng = np.random.default_rng(0)
    for n in range(40):
        shape = [(32, 32), (24, 48), (48, 24), (200, 300)][n % 4]
        pixels = np.full((*shape, 3), rng.integers(0, 256, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"in/{n:02d}.png")
        text = "long " * 60 if n == 3 else f"a <script>alert(1)</script> thing number {n} éß漢" + "x" * (200 * (n == 5))
        (folder / f"in/{n:02d}.txt").write_text(text)
    shutil.copy(folder / "in/00.png", folder / "in/copy.png")
    (folder / "in/bad.png").write_bytes(b"<html>")
    shard_dataset(str(folder / "in"), str(folder / "out"), ShardConfig(resize="none", samples_per_shard=20), 1)
    write_report(str(folder / "out"), str(folder / "report.html"))
    return folder


@pytest.mark.parametrize("width", [1200, 380])
def test_a_browser_shows_everything(folder: Path, width: int) -> None:
    """On a desk and on a telephone."""
    (folder / "probe.html").write_text(PROBE.format(width=width))
    dom = chromium(folder, "--dump-dom", (folder / "probe.html").as_uri())
    match = re.search(r'<pre id="out">(.*?)</pre>', dom, flags=re.S)
    assert match and match[1], dom[:500]
    seen = json.loads(re.sub(r"&lt;", "<", re.sub(r"&gt;", ">", match[1])).replace("&amp;", "&"))
    assert seen["images"] == 41 and seen["broken"] == seen["small"] == 0
    assert seen["overflow"] <= 0, f"{seen['overflow']} px stick out at the right"
    assert seen["bars"] > 20 and seen["widest"] > 40 and seen["requests"] == 0
    for word in ("41", "Left out, by reason", "not a picture of a known format", "3 : 2", "square", "éß漢"):
        assert word in seen["text"], word
    assert "<script>alert(1)</script>" in seen["text"], "as text, not as markup"


def test_the_picture_of_the_page_is_no_blank(folder: Path) -> None:
    chromium(folder, "--window-size=1200,1600", f"--screenshot={folder}/page.png", (folder / "report.html").as_uri())
    page = np.asarray(Image.open(folder / "page.png").convert("RGB"))
    assert page.shape[1] == 1200 and len(np.unique(page.reshape(-1, 3), axis=0)) > 40
