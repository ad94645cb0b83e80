"""`tessera registry register`, `list`, `verify` and `copy`."""

import argparse
import json
from dataclasses import asdict

from pipeline.command_line import EXIT_DONE, EXIT_FAILED
from pipeline.commands.registry.tables import SHORT, aliases, figures, print_table, print_version
from pipeline.config import UserError
from pipeline.redact import redact_text
from pipeline.tracking.download import verify
from pipeline.tracking.registration import register
from pipeline.tracking.registry import Registry
from pipeline.tracking.transfer import copy_version


def register_(registry: Registry, args: argparse.Namespace) -> int:
    """Make a model a version."""
    from pipeline.export import resolve

    version = register(registry, resolve(args.model), args.name)
    print_version(args, version, f"{version.ref} {aliases(version)}: {version.digest[:SHORT]}")
    return EXIT_DONE


def list_(registry: Registry, args: argparse.Namespace) -> int:
    """A line for each version."""
    versions = [version for name in registry.names() for version in registry.versions(name)]
    if args.json:
        print(json.dumps([asdict(version) for version in versions], indent=2))
        return EXIT_DONE
    rows = [
        [v.name, str(v.number), aliases(v), v.tags.get("samples_seen", ""), v.digest[:SHORT], figures(v)]
        for v in versions
    ]
    print_table(["model", "version", "alias", "samples seen", "digest", "figures"], rows)
    return EXIT_DONE


def verify_(registry: Registry, args: argparse.Namespace) -> int:
    """Hash one version's files again, or those of every version of a name."""
    every = "@" not in args.model and "/" not in args.model.removeprefix("models:/")
    versions = registry.versions(args.model.removeprefix("models:/")) if every else [registry.find(args.model)]
    problems: dict[str, str] = {}
    for version in versions:
        try:
            verify(registry, version)
        except UserError as error:
            problems[version.ref] = str(error)
        if not args.json:
            print(problems.get(version.ref, f"{version.ref}: whole, {version.digest[:SHORT]}"))
    if args.json:
        print(json.dumps({version.ref: problems.get(version.ref) for version in versions}, indent=2))
    return EXIT_FAILED if problems else EXIT_DONE


def copy_(registry: Registry, args: argparse.Namespace) -> int:
    """Carry one version to another server."""
    target = Registry(args.to)
    version = copy_version(registry, registry.find(args.model), target, args.name)
    print_version(
        args, version, f"{version.ref} {aliases(version)} on {redact_text(target.uri)}: whole, verified there"
    )
    first = version.tags.get("autoencoder_digest")
    if first and target.with_digest(first) is None and not args.json:
        print(f"its autoencoder {first[:SHORT]} is not registered there, which the gates ask for: copy it too")
    return EXIT_DONE
