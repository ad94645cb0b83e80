"""`tessera registry register`, `list` and `verify`."""

import argparse
import json
from dataclasses import asdict

from pipeline.command_line import EXIT_DONE, EXIT_FAILED
from pipeline.commands.registry.tables import SHORT, aliases, figures, print_table, print_version
from pipeline.config import UserError
from pipeline.tracking.registry import Registry


def register_(registry: Registry, args: argparse.Namespace) -> int:
    """Make a model a version."""
    from pipeline.export import resolve

    version = registry.register(resolve(args.model), args.name)
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
            registry.verify(version)
        except UserError as error:
            problems[version.ref] = str(error)
        if not args.json:
            print(problems.get(version.ref, f"{version.ref}: whole, {version.digest[:SHORT]}"))
    if args.json:
        print(json.dumps({version.ref: problems.get(version.ref) for version in versions}, indent=2))
    return EXIT_FAILED if problems else EXIT_DONE
