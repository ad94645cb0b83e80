"""What `tessera doctor --data` measures: every stage, the slowest of them, and bytes that nobody uses."""

import json

import numpy as np
import pytest

from pipeline.commands import doctor
from pipeline.data.dataset import DataConfig
from pipeline.data.probe import Speed, measure
from pipeline.data.selection import select
from pipeline.data.shards import load_manifest
from pipeline.data.tar import TarSample
from tests.data.small_shards import samples, write_dataset, write_pictures


@pytest.fixture
def url(tmp_path):
    write_pictures(str(tmp_path), [40, 24])
    return str(tmp_path)


def measured(url, world_size=1):
    config = DataConfig(train=url, image_size=8, num_lanes=4, block_samples=4, num_fetch_threads=2)
    return measure(config, 8, world_size, 0.02)


def test_every_stage_is_timed(url):
    speed = measured(url)
    assert min(speed.network, speed.decode, speed.copying, speed.fed) > 0
    assert speed.fetched_over_used == 1.0


def test_the_slowest_stage_binds():
    assert Speed(9.0, 4.0, 5.0, 3.0, 1.0).bound == "decode"
    assert Speed(3.0, 4.0, 5.0, 3.0, 1.0).bound == "network"


def test_bytes_that_nobody_uses_are_counted(url):
    assert measured(url, 2).fetched_over_used == pytest.approx(1 + 4 / 16)  # of 16 blocks 4 may lie across two lanes
    assert measured(url, 3).fetched_over_used == pytest.approx(3 + 4 / 16)  # every lane is read by all three
    select(load_manifest(url), np.arange(64) % 2 == 0, {}).save(url)
    assert 1.6 < measured(url).fetched_over_used < 2.0  # small neighbours are read along


def run(capsys, *words):
    parser = doctor.argparse.ArgumentParser()
    doctor.configure(parser)
    code = doctor.run(parser.parse_args([*words, "--seconds", "0.02", "--json"]))
    return code, json.loads(capsys.readouterr().out)


def test_the_command(url, tmp_path, capsys):
    code, (whole, speed) = run(capsys, "--data", url)
    assert (code, whole["status"], speed["status"]) == (0, "ok", "ok")
    assert "samples/s, bound by" in speed["found"] and "bytes fetched over bytes used 1.00" in speed["found"]
    code, findings = run(capsys, "--data", str(tmp_path / "none"))
    assert code == 1 and len(findings) == 1


def test_pictures_that_do_not_decode_do_not_end_it(tmp_path, capsys):
    content = samples(200)
    for n in (0, 30):
        content[n] = TarSample(content[n].key, content[n].members | {"png": b"broken"})
    write_dataset(str(tmp_path), [content])
    code, (whole, speed) = run(capsys, "--data", str(tmp_path))
    assert (code, speed["status"]) == (0, "ok") and whole["found"] == "200 samples; 00001 decodes"
    write_dataset(str(tmp_path), [content[:1]])
    assert run(capsys, "--data", str(tmp_path))[0] == 1
