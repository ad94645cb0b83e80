"""A version carried from one tracking server to another, byte by byte, and what the other server may not take over.

MLflow copies rows inside one registry, whose files stay shared; here the files are downloaded, checked, uploaded and
checked again. Called by `tessera registry copy`.
"""

import tempfile
from pathlib import Path

from pipeline.config import UserError
from pipeline.redact import redact_text
from pipeline.tracking.download import download, verify
from pipeline.tracking.registration import adopt
from pipeline.tracking.registry import Registry
from pipeline.tracking.version import APPROVAL_TAG, VERDICTS_TAG, Version

ORIGIN_TAG = "copied_from"
_LOCAL = (VERDICTS_TAG, APPROVAL_TAG, "autoencoder_version", ORIGIN_TAG)
"""Tags that hold on the server that they were made on: each team's gates and approvals are its own."""


def copy_version(source: Registry, version: Version, target: Registry, name: str | None = None) -> Version:
    """Make `version` a version, and the candidate, on `target`; the same version a second time is the same there.

    Raises:
        UserError: both are one server, or the files are damaged on either side.
    """
    if source.uri == target.uri:
        raise UserError(f"{redact_text(source.uri)}: is where {version.ref} is already; name another server with --to")
    name = name or version.name
    known = target.with_digest(version.digest, name)
    if known is None:
        kept = {k: v for k, v in version.tags.items() if k not in _LOCAL and not k.startswith("gate.")}
        tags = kept | {ORIGIN_TAG: f"{redact_text(source.uri)} {version.ref}"}
        with tempfile.TemporaryDirectory(prefix="tessera-copy-") as place:
            package = download(source, version, Path(place) / "package")
            known = adopt(target, package.folder, name, tags)
    if known.files_digest != version.files_digest:
        raise UserError(
            f"{known.ref} on {redact_text(target.uri)}: the same weights, registered there with other files"
        )
    verify(target, known)
    return target.find(known.ref)
