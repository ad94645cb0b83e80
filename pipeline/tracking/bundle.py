"""What is stored of a registered version: the package, what makes it an MLflow model, its data's manifest, and sums.

`SHA256SUMS` lists every file (`sha256sum -c SHA256SUMS` checks a copy anywhere) and its own digest is a tag of the
version, so that no file can be damaged or exchanged unseen. evaluation.json and its sheet of pictures are not in it:
they may be made later; it names the weights that it is of, and is a tag itself. Called by `registration` and
`download`.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from pipeline.checkpoint.package import (
    AUTOENCODER_FOLDER,
    CARD,
    CONFIG,
    EVALUATION,
    LINEAGE,
    PREVIEW,
    RECONSTRUCTIONS,
    WEIGHTS,
    Package,
)
from pipeline.config import UserError
from pipeline.data.shards import MANIFEST_NAME, load_manifest
from pipeline.redact import redact_text
from pipeline.storage import join, read_bytes, sha256_of
from pipeline.tracking.flavour import write_flavour

SUMS = "SHA256SUMS"
LOADED_FROM = "registered_model_meta"
"""A note that MLflow leaves in the folder of a model which it loads, where the server's store is a local one."""
DATA_MANIFEST = "data-manifest.json"

_OF_A_PACKAGE = (WEIGHTS, CONFIG, LINEAGE, CARD, PREVIEW, EVALUATION, RECONSTRUCTIONS)


@contextmanager
def bundled(package: Package, run_id: str) -> Iterator[Path]:
    """A folder with everything that is stored; the package's own files are links, so that nothing large is copied."""
    with tempfile.TemporaryDirectory(prefix="tessera-bundle-") as place:
        folder = Path(place)
        _link(package.folder, folder)
        if package.autoencoder is not None:
            _link(package.autoencoder.folder, folder / AUTOENCODER_FOLDER)
        write_flavour(folder, package, run_id)
        _write_data_manifest(folder, package)
        (folder / SUMS).write_text(_listing(folder))
        yield folder


def sums_digest(folder: Path) -> str:
    """sha256 hex digest of the folder's SHA256SUMS: the name of all its bytes."""
    return sha256_of(folder / SUMS)


def check_sums(folder: Path, expected: str) -> None:
    """Hash every file again.

    Args:
        expected: digest of SHA256SUMS that was recorded when the version was registered.

    Raises:
        UserError: names the files that are missing, damaged, exchanged or too many.
    """
    listed = (folder / SUMS).read_text() if (folder / SUMS).is_file() else ""
    found = _listing(folder)
    changed = sorted({line.split("  ", 1)[1] for line in set(listed.splitlines()) ^ set(found.splitlines())})
    if changed:
        raise UserError(f"damaged or exchanged: {', '.join(changed)}")
    if sha256(listed.encode()).hexdigest() != expected:
        raise UserError(f"damaged or exchanged: {SUMS}")


def _listing(folder: Path) -> str:
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    later = (SUMS, EVALUATION, RECONSTRUCTIONS, LOADED_FROM)
    return "".join(f"{sha256_of(folder / name)}  {name}\n" for name in files if name not in later)


def _link(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for name in _OF_A_PACKAGE:
        if (source / name).is_file():
            os.symlink((source / name).absolute(), target / name)


def _write_data_manifest(folder: Path, package: Package) -> None:
    """The list of shards that were trained on, if it can be read from here and is still the one that was trained on."""
    url = package.lineage.get("data_url", "")
    expected = package.lineage.get("latents_digest") or package.lineage.get("data_digest")
    try:
        if load_manifest(url).digest != expected:
            return
        text = read_bytes(join(url, MANIFEST_NAME)).decode()
    except (UserError, OSError, ValueError, ImportError):  # gone, or out of reach: the digest is recorded anyway
        return
    (folder / DATA_MANIFEST).write_text(redact_text(text))
