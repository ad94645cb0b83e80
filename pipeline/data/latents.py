"""Latent datasets: the stamp that says which autoencoder made them, and the decoder of their samples.

A latent shard mirrors an images shard: same name, keys and order, members `{key}.json`, `{key}.npy` (the latent before
quantisation, not normalised), `{key}.txt` and, with a frozen text tower, `{key}.text.npy` (the states of its caption,
without those of padding where the tower masks it). Written by
`data_tools.precompute`, read by the loader, which refuses latents of another autoencoder.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from pipeline.config import UserError
from pipeline.data.captions import CaptionChoice
from pipeline.data.samples import Arrays, BadSample, Decoded
from pipeline.data.shards import Manifest
from pipeline.data.tar import TarSample, metadata_of

LATENT, TEXT_STATES = "npy", "text.npy"
"""Extensions of the members."""


@dataclass(frozen=True)
class LatentStamp:
    """Where the latents of a manifest come from."""

    autoencoder_digest: str
    """Digest of the exported autoencoder (`pipeline.checkpoint.package`)."""
    dtype: str
    """numpy name of the stored type, `float16` or `float32`."""
    latent_shape: tuple[int, int, int]
    """(C, h, w) of one sample."""
    image_size: int
    """Side of the encoded picture in pixels."""
    crop: str
    """How it was cut out: `center`."""
    source_digest: str
    """Digest of the images manifest."""
    text_digest: str | None = None
    """Digest of the frozen text tower's config and weights; None when the shards hold no text states."""

    def as_dict(self) -> dict[str, Any]:
        """For the manifest: plain JSON values."""
        return asdict(self) | {"latent_shape": list(self.latent_shape)}


def read_stamp(manifest: Manifest, url: str) -> LatentStamp:
    """The stamp of a latents manifest.

    Raises:
        UserError: the manifest holds no latents, or its stamp is not whole.
    """
    if manifest.kind != "latents" or manifest.stamp is None:
        raise UserError(f"{url}: holds {manifest.kind}, not latents; make them with `tessera-data precompute`")
    try:
        fields: Mapping[str, Any] = manifest.stamp
        return LatentStamp(**{**fields, "latent_shape": tuple(fields["latent_shape"])})
    except (TypeError, KeyError) as error:
        raise UserError(f"{url}: its latent stamp is damaged ({error}); run `tessera-data precompute` again") from None


def check_autoencoder(stamp: LatentStamp, expected_digest: str, url: str) -> None:
    """Refuse latents that another autoencoder made.

    Raises:
        UserError: names both digests.
    """
    if stamp.autoencoder_digest != expected_digest:
        raise UserError(
            f"{url}: latents of autoencoder {stamp.autoencoder_digest[:12]}, this run uses {expected_digest[:12]};"
            " run `tessera-data precompute` with the run's autoencoder into another folder"
        )


def check_text(stamp: LatentStamp, expected_digest: str, url: str) -> None:
    """Refuse stored text states of another tower; latents without text states suit any.

    Raises:
        UserError: names both digests.
    """
    if stamp.text_digest not in (None, expected_digest):
        raise UserError(
            f"{url}: text states of tower {str(stamp.text_digest)[:12]}, stage.text is {expected_digest[:12]};"
            " run `tessera-data precompute --text` with the run's tower into another folder"
        )


class LatentDecoder:
    """Latents and, where the shards hold them, text states: float32 whatever is stored."""

    def __init__(self, stamp: LatentStamp, captions: CaptionChoice) -> None:
        self._stamp, self._captions = stamp, captions

    def __call__(self, sample: TarSample, epoch: int, sample_id: int) -> Decoded:
        """The arrays of a sample, the same in every epoch, and its caption; raises BadSample."""
        try:
            latent = parse_array(sample.members[LATENT])
            text = parse_array(sample.members[TEXT_STATES]) if self._stamp.text_digest else None
        except (KeyError, ValueError) as error:
            raise BadSample(f"{sample.key}: no whole array ({error})") from None
        if latent.shape != self._stamp.latent_shape:
            raise BadSample(f"{sample.key}: latent of shape {latent.shape}, the stamp says {self._stamp.latent_shape}")
        return Decoded(sample.key, self._captions(sample, epoch, sample_id), latent, metadata_of(sample), text)

    def stack(self, samples: Sequence[Decoded]) -> Arrays:
        """Stacked and widened."""
        latents = np.empty((len(samples), *self._stamp.latent_shape), dtype=np.float32)
        for row, sample in zip(latents, samples, strict=True):
            row[...] = sample.array
        states = [sample.text_states for sample in samples if sample.text_states is not None]
        text = _padded(states) if states else None  # [B, T, D]
        return Arrays(latents=torch.from_numpy(latents), text_states=text)  # [B, C, h, w]


def _padded(states: Sequence[np.ndarray]) -> torch.Tensor:
    """float32 [B, T, D], T of the longest caption; zeros behind the end of the others."""
    longest = max(len(rows) for rows in states)
    whole = np.zeros((len(states), longest, states[0].shape[1]), dtype=np.float32)
    for place, rows in zip(whole, states, strict=True):
        place[: len(rows)] = rows
    return torch.from_numpy(whole)


def array_bytes(array: np.ndarray) -> bytes:
    """An array as the bytes of an npy file."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def parse_array(data: bytes) -> np.ndarray:
    """The read-only array of an npy file; headers, which all samples share, are parsed once.

    Raises:
        ValueError: not a whole npy file.
    """
    header_stop = 10 + int.from_bytes(data[8:10], "little")
    dtype, shape = _npy_header(data[:header_stop])
    return np.frombuffer(data, dtype=dtype, offset=header_stop).reshape(shape)


@lru_cache(maxsize=256)
def _npy_header(header: bytes) -> tuple[np.dtype, tuple[int, ...]]:
    """Type and shape from the header of a version 1 npy file."""
    file = io.BytesIO(header)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("npy file of another version than 1.0")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if fortran_order or dtype.hasobject:
        raise ValueError("npy file with Fortran order or objects")
    return dtype, shape
