"""Pictures from a real server that is slow, cuts off, fails for a while, or says no: retried, told, respected."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from data_tools.shard import ShardConfig, WorkConfig, shard_dataset
from data_tools.sources.open import open_source
from data_tools.web import OptedOut, WebConfig, download
from tests.data_tools.web_server import Site, serving

QUICK = WebConfig(num_retries=1, timeout_seconds=1.0, num_threads=8, connections_per_host=3)


def jpeg(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file, "JPEG")
    return file.getvalue()


PICTURES = {f"{n}.jpg": jpeg(n) for n in range(20)}


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(PICTURES) as found:
        yield found


@pytest.mark.parametrize("how", ["", "moved/", "once/", "cut-once/", "others/"])
def test_what_passes_in_the_end(site: Site, how: str) -> None:
    assert download(f"{site.url}/{how}3.jpg", QUICK) == PICTURES["3.jpg"]
    assert site.asked[f"/{how}3.jpg"] == (2 if "once" in how else 1)


@pytest.mark.parametrize(
    ("path", "reason", "num_asked"),
    [
        ("gone.jpg", "HTTP 404", 1),
        ("cut/1.jpg", "answer cut off", 2),
        ("slow/1.jpg", "timed out", 2),
        ("noai/1.jpg", "opted out: noai", 1),
        ("us/1.jpg", "opted out: noimageai", 1),
        ("tdm/1.jpg", "opted out: tdm-reservation", 1),
    ],
)
def test_what_does_not(site: Site, path: str, reason: str, num_asked: int) -> None:
    with pytest.raises(OSError) as told:
        download(f"{site.url}/{path}", QUICK)
    assert str(told.value) == reason and isinstance(told.value, OptedOut) == reason.startswith("opted")
    assert site.asked[f"/{path}"] == num_asked


@pytest.mark.parametrize(
    ("url", "reason"),
    [("http://127.0.0.1:1/x.jpg", "connection refused"), ("http://[", "not a URL"), ("https://{site}", "no secure")],
)
def test_addresses_that_lead_nowhere(site: Site, url: str, reason: str) -> None:
    address = url.replace("{site}", site.url.removeprefix("http://"))
    with pytest.raises(OSError, match=reason):
        download(address, QUICK.model_copy(update={"num_retries": 0}))


def test_a_list_of_urls_becomes_shards(site: Site, tmp_path: Path) -> None:
    paths = [f"pause/{name}" for name in PICTURES] + ["gone.jpg", "noai/1.jpg"]
    (tmp_path / "urls.txt").write_text("\n".join(f"{site.url}/{path}" for path in paths))
    source = open_source(str(tmp_path / "urls.txt"))
    summary = shard_dataset(source, "urls", str(tmp_path / "out"), ShardConfig(resize="none"), WorkConfig(web=QUICK))
    assert summary["samples"] == 20 and summary["failures"] == {"HTTP 404": 1, "opted out: noai": 1}
    assert 1 < site.busiest <= QUICK.connections_per_host, "several at once, and no more than a host may have"
    rows = parquet.read_table(tmp_path / "out" / "00000.parquet").to_pylist()
    assert {row["url"].rpartition("/")[2] for row in rows if row["status"] == "success"} == set(PICTURES)
    assert {row["status"] for row in rows} == {"success", "failed_to_download"}
