"""An exported model in the files of other projects: the table of formats, each a writer for a kind of model.

Called by `tessera export --format`.
"""

from collections.abc import Callable
from pathlib import Path

from pipeline.checkpoint.package import AUTOENCODER_KIND, UNET_KIND, Package
from pipeline.config import UserError
from pipeline.formats import autoencoder, unet

Writer = Callable[[Package, Path], None]
"""Writes a package's weights and config into an empty folder."""

WRITERS: dict[tuple[str, str], Writer] = {
    ("diffusers", AUTOENCODER_KIND): autoencoder.write_diffusers,
    ("compvis", AUTOENCODER_KIND): autoencoder.write_compvis,
    ("diffusers", UNET_KIND): unet.write_diffusers,
    ("compvis", UNET_KIND): unet.write_compvis,
}
"""(format, kind of package) -> its writer."""

FORMATS = sorted({name for name, _ in WRITERS})
"""Names of the formats."""


def write(name: str, package: Package, folder: Path) -> None:
    """Write `package` in the format `name` into `folder`, which is empty.

    Raises:
        UserError: the format has no place for this kind of model, or for a setting of this one.
    """
    writer = WRITERS.get((name, package.kind))
    if writer is None:
        raise UserError(f"{package.folder}: a {package.kind} has no {name} format; export it without --format")
    writer(package, folder)
