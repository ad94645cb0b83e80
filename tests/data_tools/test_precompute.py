"""Precomputed latents equal online ones, mirror their source, survive interruptions, and never mix two models."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from data_tools.__main__ import main
from data_tools.precompute import LatentEncoder, PrecomputeConfig, precompute
from pipeline.checkpoint.package import load_package, save_package
from pipeline.config import UserError
from pipeline.data.latents import check_text, read_stamp
from pipeline.data.loader import DataConfig, Loader, OrderedReader, sequential
from pipeline.data.shards import load_manifest
from pipeline.data.tar import TarSample
from pipeline.data.transforms import to_model
from pipeline.models.autoencoder import Autoencoder
from pipeline.models.packaged import load_autoencoder
from pipeline.models.text import TextTower, TrainableTextConfig, build_text_tower
from pipeline.randomness import Draws
from pipeline.stages.diffusion_inputs import Inputs
from tests.data.small_shards import samples, write_dataset, write_pictures
from tests.small_models import small_autoencoder

CPU = torch.device("cpu")
MODEL = small_autoencoder(latent_channels=3, embedding_dim=3)
COUNTS = [7, 0, 12, 5]


def export(folder, seed=0):
    model = Autoencoder(MODEL, seed=seed)
    return save_package(folder, "vq-autoencoder", model.state_dict(), MODEL.model_dump(mode="json"), {}, "# toy\n")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """(exported autoencoder, url of pictures that need a crop)."""
    root = tmp_path_factory.mktemp("precompute")
    write_pictures(str(root / "shards"), COUNTS, size=(24, 20))
    return export(root / "vq"), str(root / "shards")


def run(package, data, out, rank=0, world_size=1, **fields):
    config = PrecomputeConfig(**{"batch_size": 5} | fields)
    return precompute(LatentEncoder(package, config, CPU), data, str(out), config, rank, world_size)


def tars(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".tar", ".idx")}


def test_stored_latents_equal_online_ones(places, tmp_path):
    package, data = places
    summary = run(package, data, tmp_path / "out")
    assert (summary["samples"], summary["shards_written"], summary["left_out"]) == (24, 4, 0)
    autoencoder = load_autoencoder(package)
    images = sequential(data, DataConfig(train=data, image_size=16), batch_size=7)
    stored = sequential(str(tmp_path / "out"), DataConfig(train="x"), batch_size=7, expect_autoencoder=package.digest)
    for online, offline in zip(images, stored, strict=True):
        assert (online.keys, online.captions, online.sample_ids) == (offline.keys, offline.captions, offline.sample_ids)
        with torch.inference_mode():
            latents = autoencoder.encode_raw(to_model(online.images))
        torch.testing.assert_close(offline.latents, latents, rtol=0, atol=1e-5)


def test_training_sees_the_same_samples_in_the_same_order(places, tmp_path):
    package, data = places
    run(package, data, tmp_path / "out")
    with Loader(data, DataConfig(train=data, image_size=16), 1, batch_size=6) as images:
        keys = [key for _, batch in zip(range(8), images.batches(), strict=False) for key in batch.keys]
    with Loader(str(tmp_path / "out"), DataConfig(train="x"), 1, batch_size=6) as latents:
        assert keys == [key for _, batch in zip(range(8), latents.batches(), strict=False) for key in batch.keys]


def test_shards_mirror_the_source_and_the_stamp_names_it(places, tmp_path):
    package, data = places
    run(package, data, tmp_path / "out", dtype="float16")
    source, latents = load_manifest(data), load_manifest(str(tmp_path / "out"))
    assert [(s.name, s.num_samples) for s in latents.shards] == [(s.name, s.num_samples) for s in source.shards]
    assert latents.kind == "latents"
    assert latents.stamp == {
        "autoencoder_digest": package.digest,
        "dtype": "float16",
        "latent_shape": [3, 8, 8],
        "image_size": 16,
        "crop": "center",
        "source_digest": source.digest,
        "text_digest": None,
    }


def test_a_second_run_writes_nothing_and_another_folder_gets_the_same_bytes(places, tmp_path):
    package, data = places
    first = run(package, data, tmp_path / "a")
    again = run(package, data, tmp_path / "a")
    assert (again["shards_written"], again["shards_skipped"], again["digest"]) == (0, 4, first["digest"])
    run(package, data, tmp_path / "b")
    assert tars(tmp_path / "a") == tars(tmp_path / "b")
    assert (tmp_path / "a" / "manifest.json").read_bytes() == (tmp_path / "b" / "manifest.json").read_bytes()


def test_it_goes_on_after_an_interruption(places, tmp_path):
    package, data = places
    whole = run(package, data, tmp_path / "whole")
    run(package, data, tmp_path / "cut")
    for name in ("00002_stats.json", "00002.tar", "manifest.json"):
        (tmp_path / "cut" / name).unlink()
    resumed = run(package, data, tmp_path / "cut")
    assert (resumed["shards_written"], resumed["digest"]) == (1, whole["digest"])
    assert tars(tmp_path / "whole") == tars(tmp_path / "cut")


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_ranks_share_the_shards_in_any_order(places, tmp_path, world_size):
    package, data = places
    digest = run(package, data, tmp_path / "one")["digest"]
    many = [run(package, data, tmp_path / "many", rank, world_size)["digest"] for rank in reversed(range(world_size))]
    assert many[-1] == digest and many[0] is None
    assert tars(tmp_path / "one") == tars(tmp_path / "many")


def test_another_model_or_type_or_size_on_the_same_folder_is_refused(places, tmp_path):
    package, data = places
    run(package, data, tmp_path / "out")
    with pytest.raises(UserError, match="autoencoder_digest: .* choose another --out"):
        run(export(tmp_path / "other", seed=1), data, tmp_path / "out")
    with pytest.raises(UserError, match="dtype: 'float32' -> 'float16'"):
        run(package, data, tmp_path / "out", dtype="float16")
    with pytest.raises(UserError, match="image_size: 16 -> 20"):
        run(package, data, tmp_path / "out", image_size=20)
    with pytest.raises(UserError, match="another dataset"):
        run(package, data, data)
    with pytest.raises(UserError, match="holds latents"):
        run(package, str(tmp_path / "out"), tmp_path / "twice")
    with pytest.raises(UserError, match="--image-size 15: not a multiple of the autoencoder's factor 2"):
        run(package, data, tmp_path / "odd", image_size=15)


def test_unreadable_pictures_are_left_out_and_counted(places, tmp_path):
    package, _ = places
    content = samples(10, size=(16, 16))
    content[4] = TarSample("00004", content[4].members | {"png": b"broken"})
    write_dataset(str(tmp_path / "shards"), [content])
    summary = run(package, str(tmp_path / "shards"), tmp_path / "out", max_bad_fraction=0.1)
    assert (summary["samples"], summary["left_out"]) == (9, 1)
    keys = [k for b in sequential(str(tmp_path / "out"), DataConfig(train="x"), batch_size=4) for k in b.keys]
    assert keys == [f"{n:05d}" for n in range(10) if n != 4]


def test_metadata_is_kept(places, tmp_path):
    package, _ = places
    write_dataset(str(tmp_path / "shards"), [[TarSample("0", samples(1)[0].members | {"json": b'{"url": "u"}'})]])
    run(package, str(tmp_path / "shards"), tmp_path / "out")
    batch = next(sequential(str(tmp_path / "out"), DataConfig(train="x"), batch_size=1))
    assert json.loads(batch.metadata[0]) == {"url": "u"} and np.isfinite(batch.latents.numpy()).all()


def test_the_command_says_what_a_sample_cost(places, tmp_path, capsys, monkeypatch):
    package, data = places
    words = ["tessera-data", "precompute", "--model", str(package.folder), "--data", data]
    words += ["--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", words)
    assert main() == 0
    assert "24 latents in 4 shards" in (text := capsys.readouterr().out) and "CPU ms a sample" in text
    monkeypatch.setattr(sys, "argv", [*words, "--json"])
    assert main() == 0
    assert json.loads(capsys.readouterr().out)["shards_skipped"] == 4
    assert load_package(package.folder).digest == load_manifest(str(tmp_path / "out")).stamp["autoencoder_digest"]


def test_wrong_use_is_one_line(tmp_path):
    words = ["precompute", "--model", str(tmp_path / "none"), "--data", "x", "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-m", "data_tools", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1


def test_masking_without_text_states_is_refused(monkeypatch, capsys):
    words = ["tessera-data", "precompute", "--model", "x", "--data", "y", "--out", "z", "--mask-padding"]
    monkeypatch.setattr(sys, "argv", words)
    assert main() == 2
    assert "--mask-padding: there are no text states without --text" in capsys.readouterr().err


def frozen_tower(seed=0, mask_padding=False):
    """A tower as a pretrained one is, but small and with random weights."""
    torch.manual_seed(seed)
    tower = build_text_tower(TrainableTextConfig(width=16, num_layers=2, num_heads=2, context_length=12))
    return TextTower(tower.transformer, tower.tokenizer, layer=0, frozen=True, mask_padding=mask_padding)


@pytest.mark.parametrize("mask_padding", [False, True])
def test_stored_text_states_are_what_training_would_encode(places, tmp_path, mask_padding):
    package, data = places
    config, tower = PrecomputeConfig(batch_size=5), frozen_tower(mask_padding=mask_padding)
    precompute(LatentEncoder(package, config, CPU, tower), data, str(tmp_path / "both"), config)
    stamp = read_stamp(load_manifest(str(tmp_path / "both")), "both")
    assert stamp.text_digest == tower.digest()
    with OrderedReader(str(tmp_path / "both"), DataConfig(train=""), batch_size=7) as reader:
        batches = list(reader.batches())
    assert sum(len(batch.captions) for batch in batches) == sum(COUNTS)
    lengths = {batch.text_states.shape[1] for batch in batches}
    assert max(lengths) <= 5 if mask_padding else lengths == {12}  # start, "caption", a number, end
    autoencoder = load_autoencoder(package)
    for batch in batches:
        inputs = Inputs(tower, autoencoder, None, Draws(0))
        dropped = [i % 3 == 0 for i in range(len(batch.captions))]
        stored = inputs.captions(batch, dropped)
        batch.text_states = None  # so that they are encoded now
        torch.testing.assert_close(stored, inputs.captions(batch, dropped))
    check_text(stamp, tower.digest(), "both")
    with pytest.raises(UserError, match="text states of tower"):
        check_text(stamp, frozen_tower(seed=1).digest(), "both")
