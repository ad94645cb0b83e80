"""The models of a team, by name and version, in the MLflow model registry: what is there, and how to say which.

A version is an exported folder stored as artifacts, with its digests and measured values as tags (`registration` makes
it, `download` brings it). Aliases say what it is for: `candidate`, `champion`, `previous` (see `promotion`). Called by
`tessera registry` and by `pipeline.export.resolve`.
"""

import difflib
import re
from collections.abc import Callable
from typing import Any

from pipeline.config import UserError
from pipeline.redact import redact_text
from pipeline.tracking.server import answering, connect, tracking_uri
from pipeline.tracking.version import CHAMPION, DIGEST_TAG, LOG_SUFFIX, Version, version_of

MANY = 10
"""Versions that an error message names."""

_REFERENCE = re.compile(r"(?:models:/)?(?P<name>[^@/]+)(?:@(?P<alias>[^@/]+)|/v?(?P<number>\d+))?")


class Registry:
    """The registry of one tracking server.

    Raises, from every method:
        ServerError: the server does not answer.
        UserError: there is no such model, version or alias; names what is near.
    """

    def __init__(self, uri: str | None = None) -> None:
        self.uri = tracking_uri(uri)
        self.client = connect(self.uri)

    def names(self) -> list[str]:
        """All registered models."""
        with answering(self.uri):
            found = [model.name for model in _pages(self.client.search_registered_models)]
        return sorted(name for name in found if not name.endswith(LOG_SUFFIX))

    def versions(self, name: str) -> list[Version]:
        """All versions of a model, oldest first."""
        aliases = self.aliases(name)
        with answering(self.uri):
            found = _pages(self.client.search_model_versions, f"name='{name}'")
        return sorted((version_of(v, aliases) for v in found), key=lambda version: version.number)

    def rows(self, log: str) -> list[tuple[int, dict[str, str]]]:
        """Number and tags of every entry of a log, oldest first; none if there is no such log."""
        with answering(self.uri):
            found = _pages(self.client.search_model_versions, f"name='{log}'")
        return sorted((int(row.version), dict(row.tags)) for row in found)

    def find(self, ref: str) -> Version:
        """The version that `models:/name@alias`, `models:/name/7`, `name@alias` or `name/7` means.

        A bare `name` means its champion, or else its newest version.
        """
        match = _REFERENCE.fullmatch(ref)
        if match is None:
            raise UserError(f"{ref}: a registered model is written models:/NAME@ALIAS or models:/NAME/7")
        name, aliases = match["name"], self.aliases(match["name"])
        if match["number"]:
            number: int | None = int(match["number"])
        elif match["alias"] or CHAMPION in aliases:
            number = aliases.get(match["alias"] or CHAMPION)
        else:
            number = max((version.number for version in self.versions(name)), default=None)
        found = self._version(name, number, aliases) if number else None
        if found is None:
            there = ", ".join(f"@{alias}" for alias in sorted(aliases)) or "no alias"
            numbers = ", ".join(str(version.number) for version in self.versions(name)[-MANY:]) or "none"
            raise UserError(f"{ref}: no such version; {name} has {there}, and the newest versions are {numbers}")
        return found

    def _version(self, name: str, number: int, aliases: dict[str, int]) -> Version | None:
        """One version, if it is there."""
        from mlflow.exceptions import MlflowException

        with answering(self.uri):
            try:
                return version_of(self.client.get_model_version(name, str(number)), aliases)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return None

    def with_digest(self, digest: str, name: str | None = None) -> Version | None:
        """The oldest version, of one model or of any, that holds this package."""
        with answering(self.uri):
            found = _pages(self.client.search_model_versions, f"tags.`{DIGEST_TAG}` = '{digest}'")
        holders = sorted((row.name, int(row.version)) for row in found if name in (None, row.name))
        mine = [holder for holder in holders if not holder[0].endswith(LOG_SUFFIX)]
        return self.find("{}/{}".format(*mine[0])) if mine else None

    def append(self, log: str, version: Version, tags: dict[str, str]) -> None:
        """Add an entry about `version` to a log, under the next number that the server gives out."""
        with answering(self.uri):
            self.add_row(log, version.source, version.run_id, tags)

    def add_row(self, name: str, source: str, run_id: str, tags: dict[str, str], description: str = "") -> int:
        """A new row of the model or log `name`, which is created if need be; the number that the server gave out."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        return int(self.client.create_model_version(name, source, run_id, tags, description=description).version)

    def aliases(self, name: str) -> dict[str, int]:
        """The number of the version that each alias of a model points to."""
        from mlflow.exceptions import MlflowException

        with answering(self.uri):
            try:
                model = self.client.get_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                names = self.names()
                near = difflib.get_close_matches(name, names, n=1)
                hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(names) or 'none yet'}"
                raise UserError(f"{name}: no such registered model on {redact_text(self.uri)}; {hint}") from None
        return {alias: int(number) for alias, number in model.aliases.items()}


def _pages(search: Callable[..., Any], *words: str) -> list[Any]:
    """Everything that a search of MLflow finds, whose answers come in pages."""
    page = search(*words)
    found = list(page)
    while page.token:
        page = search(*words, page_token=page.token)
        found += page
    return found
