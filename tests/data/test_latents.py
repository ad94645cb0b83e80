"""Latents know their autoencoder, come back as float32, and are refused when another one made them."""

import numpy as np
import pytest
import torch

from pipeline.config import UserError
from pipeline.data.latents import LatentStamp, array_bytes, parse_array, read_stamp
from pipeline.data.loader import DataConfig, Loader, sequential
from pipeline.data.shards import load_manifest
from pipeline.data.tar import TarSample
from tests.data.small_shards import write_dataset, write_pictures

STAMP = LatentStamp("a" * 64, "float16", (2, 4, 4), 32, "center", "b" * 64)


def latent(number, shape=(2, 4, 4)):
    return np.random.default_rng(number).standard_normal(shape).astype(np.float16)


def write_latents(url, count=10, stamp=STAMP, states=False):
    samples = []
    for n in range(count):
        members = {"npy": array_bytes(latent(n)), "txt": str(n).encode(), "json": b"{}"}
        if states:
            members["text.npy"] = array_bytes(np.full((3, 5), n, dtype=np.float16))
        samples.append(TarSample(f"{n:05d}", members))
    return write_dataset(url, [samples[:4], samples[4:]], kind="latents", stamp=stamp.as_dict())


@pytest.mark.parametrize("dtype", ["float16", "float32", "int64"])
def test_arrays_survive_and_numpy_agrees(dtype, tmp_path):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    assert np.array_equal(parse_array(array_bytes(array)), array)
    np.save(tmp_path / "a.npy", array)
    assert np.array_equal(parse_array((tmp_path / "a.npy").read_bytes()), array)


@pytest.mark.parametrize("data", [b"", b"not an npy file at all", array_bytes(np.zeros(9))[:-1]])
def test_broken_arrays_are_value_errors(data):
    with pytest.raises(ValueError):
        parse_array(data)


def test_stamp_round_trip(tmp_path):
    write_latents(str(tmp_path))
    assert read_stamp(load_manifest(str(tmp_path)), "x") == STAMP


def test_loader_serves_latents_as_float32(tmp_path):
    url = str(tmp_path)
    write_latents(url)
    with Loader(url, DataConfig(train=url, num_lanes=3, block_samples=2), 0, batch_size=5) as loader:
        batch = next(loader.batches())
    assert batch.images is None and batch.text_states is None
    assert (batch.latents.dtype, batch.latents.shape) == (torch.float32, (5, 2, 4, 4))
    for row, number in zip(batch.latents, batch.sample_ids, strict=True):
        assert np.array_equal(row.numpy(), latent(number).astype(np.float32))
    assert batch.captions == [str(n) for n in batch.sample_ids]


def test_text_states_come_along(tmp_path):
    url = str(tmp_path)
    stamp = LatentStamp(**{**STAMP.__dict__, "text_digest": "c" * 64})
    write_latents(url, stamp=stamp, states=True)
    batch = next(sequential(url, DataConfig(train=url), batch_size=4))
    assert batch.text_states.shape == (3, 3, 5) and batch.text_states[2, 0, 0] == 2


def test_another_autoencoder_is_refused(tmp_path):
    url = str(tmp_path)
    write_latents(url)
    config = DataConfig(train=url)
    Loader(url, config, 0, batch_size=2, expect_autoencoder="a" * 64).close()
    with pytest.raises(UserError, match="latents of autoencoder aaaaaaaaaaaa, this run uses dddddddddddd"):
        Loader(url, config, 0, batch_size=2, expect_autoencoder="d" * 64)
    with pytest.raises(UserError, match="precompute"):
        sequential(url, config, batch_size=2, expect_autoencoder="d" * 64)


def test_pictures_are_fine_where_an_autoencoder_is_expected(tmp_path):
    write_pictures(str(tmp_path), [4])
    Loader(str(tmp_path), DataConfig(train="x", image_size=8), 0, batch_size=2, expect_autoencoder="d" * 64).close()


def test_latents_cannot_be_flipped(tmp_path):
    write_latents(str(tmp_path))
    with pytest.raises(UserError, match="random_flip"):
        Loader(str(tmp_path), DataConfig(train="x", random_flip=True), 0, batch_size=2)


def test_a_latent_of_another_shape_is_a_bad_sample(tmp_path):
    url = str(tmp_path)
    write_latents(url, stamp=LatentStamp(**{**STAMP.__dict__, "latent_shape": (2, 8, 8)}))
    with pytest.raises(UserError, match=r"shape \(2, 4, 4\), the stamp says \(2, 8, 8\)"):
        next(sequential(url, DataConfig(train=url), batch_size=2))


@pytest.mark.parametrize("stamp", [None, {}, {"latent_shape": [1, 2, 3]}])
def test_a_broken_stamp_names_the_remedy(tmp_path, stamp):
    write_dataset(str(tmp_path), [[]], kind="latents", stamp=stamp)
    with pytest.raises(UserError, match="tessera-data precompute"):
        read_stamp(load_manifest(str(tmp_path)), "x")
