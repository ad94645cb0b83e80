"""The exported model: one folder that needs no other file of the run, and the digest by which it is known.

`config.yaml` says what the weights are (kind and settings), `lineage.json` where they came from, `preview.png` what
they draw. A `latent-unet` carries the autoencoder that it was trained on as a package of its own in `autoencoder/`.
Written by `pipeline.export`; read by the generator, the evaluation, the registry and the latent precomputation.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from PIL import Image

from pipeline.config import UserError
from pipeline.storage import sha256_of, sync_directory, write_bytes, write_json

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
"""Version of the folder's layout, written into config.yaml."""

AUTOENCODER_KIND = "vq-autoencoder"
UNET_KIND = "latent-unet"
KINDS = (AUTOENCODER_KIND, UNET_KIND)
"""What a package can hold; also the names under which the registry keeps them."""

WEIGHTS, CONFIG, LINEAGE = "model.safetensors", "config.yaml", "lineage.json"
CARD, PREVIEW, EVALUATION = "MODEL_CARD.md", "preview.png", "evaluation.json"
RECONSTRUCTIONS = "reconstructions.png"
"""Held-out pictures above what an autoencoder makes of them; written with evaluation.json."""
AUTOENCODER_FOLDER = "autoencoder"


@dataclass(frozen=True)
class Package:
    """One exported folder, opened: settings and lineage are read, weights only on request."""

    folder: Path
    """Where it lies."""

    kind: str
    """`vq-autoencoder` or `latent-unet`."""

    config: dict[str, Any]
    """What builds the module: the autoencoder's config, or the whole diffusion stage's."""

    lineage: dict[str, Any]
    """Where the weights came from; the keys are listed in `pipeline.export`."""

    @cached_property
    def digest(self) -> str:
        """sha256 hex digest of the weights and their config, hashed on first use."""
        return package_digest(self.folder)

    def tensors(self) -> "dict[str, Tensor]":
        """Every weight and buffer by its state-dict name, on the CPU."""
        from safetensors.torch import load_file  # brings torch, seconds that the registry's commands do without

        return load_file(self.folder / WEIGHTS)

    @property
    def autoencoder(self) -> "Package | None":
        """The autoencoder that a latent-unet was trained on; None for an autoencoder."""
        return load_package(self.folder / AUTOENCODER_FOLDER) if self.kind == UNET_KIND else None

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """The content of evaluation.json, once `tessera evaluate` has written it."""
        path = self.folder / EVALUATION
        return json.loads(path.read_text()) if path.is_file() else None


def package_digest(folder: Path | str) -> str:
    """The digest of an exported folder: what `sha256sum config.yaml model.safetensors | sha256sum` prints in it."""
    names = (CONFIG, WEIGHTS)
    listing = "".join(f"{sha256_of(Path(folder) / name)}  {name}\n" for name in names)
    return sha256(listing.encode()).hexdigest()


def save_package(
    folder: Path | str,
    kind: str,
    tensors: "Mapping[str, Tensor]",
    config: Mapping[str, Any],
    lineage: Mapping[str, Any],
    card: str,
    preview: np.ndarray | Path | None = None,
    autoencoder: Path | str | None = None,
) -> Package:
    """Write a package whole or not at all: it is built beside its place, fsynced and renamed.

    Args:
        tensors: state-dict names to tensors; none may share memory with another.
        preview: picture as uint8 [H, W, 3], or a PNG file to copy.
        autoencoder: package folder to copy in, needed by a latent-unet; its digest goes into config and lineage.

    Raises:
        UserError: the folder is there already, or `autoencoder` is not an exported autoencoder.
    """
    assert kind in KINDS, kind
    assert (kind == UNET_KIND) == (autoencoder is not None), "a latent-unet, and nothing else, carries an autoencoder"
    target = Path(folder)
    if target.exists():
        raise UserError(f"{target}: is there already; choose another folder or remove this one")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        document: dict[str, Any] = {"format": FORMAT, "kind": kind}
        origin = dict(lineage)
        if autoencoder is not None:
            document["autoencoder_digest"] = origin["autoencoder_digest"] = _copy_autoencoder(autoencoder, partial)
        document["config"] = dict(config)
        _write_weights(partial / WEIGHTS, tensors)
        write_bytes(partial / CONFIG, yaml.safe_dump(document, sort_keys=False, width=120).encode())
        write_json(partial / LINEAGE, origin)
        write_bytes(partial / CARD, card.encode())
        _write_preview(partial / PREVIEW, preview)
        partial.rename(target)
        sync_directory(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return load_package(target)


def load_package(folder: Path | str) -> Package:
    """Open an exported folder.

    Raises:
        UserError: not an exported folder, a file of it is missing or unreadable, or a latent-unet whose
            `autoencoder/` is not the one that it was trained on.
    """
    place = Path(folder)
    for name in (CONFIG, WEIGHTS, LINEAGE):
        if not (place / name).is_file():
            raise UserError(f"{place}: not an exported model, {name} is missing; `tessera export` writes one")
    try:
        document = yaml.safe_load((place / CONFIG).read_text())
        lineage = json.loads((place / LINEAGE).read_text())
        kind, config, form = document["kind"], document["config"], document["format"]
    except (yaml.YAMLError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{place}: unreadable package ({type(error).__name__}: {error}); export it again") from None
    if kind not in KINDS or form != FORMAT:
        raise UserError(f"{place}: package kind {kind!r}, format {form!r}; this version reads {KINDS}, format {FORMAT}")
    package = Package(place, kind, config, lineage)
    _check_autoencoder(package, document.get("autoencoder_digest"))
    return package


def _copy_autoencoder(source: Path | str, partial: Path) -> str:
    """Copy the autoencoder's package into a latent-unet that is being written; its digest."""
    package = load_package(source)
    if package.kind != AUTOENCODER_KIND:
        raise UserError(f"{source}: is a {package.kind}, not a {AUTOENCODER_KIND}")
    shutil.copytree(source, partial / AUTOENCODER_FOLDER)
    return package.digest


def _check_autoencoder(package: Package, expected: str | None) -> None:
    """Refuse a latent-unet whose autoencoder was exchanged after training."""
    inner = package.autoencoder
    if inner is not None and not inner.digest == expected == package.lineage.get("autoencoder_digest"):
        raise UserError(
            f"{package.folder}: trained on autoencoder {str(expected)[:12]}, but autoencoder/ holds"
            f" {inner.digest[:12]}; export it again"
        )


def _write_weights(path: Path, tensors: "Mapping[str, Tensor]") -> None:
    """Tensors as safetensors, on disk before the folder gets its name."""
    from safetensors.torch import save_file

    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _write_preview(path: Path, preview: np.ndarray | Path | None) -> None:
    """The picture, drawn from pixels or copied."""
    if isinstance(preview, Path):
        shutil.copyfile(preview, path)
    elif preview is not None:
        Image.fromarray(preview).save(path)
