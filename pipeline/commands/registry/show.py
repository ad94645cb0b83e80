"""`tessera registry show`: one version, what it came from, and so on down to the data, as a tree."""

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pipeline.command_line import EXIT_DONE
from pipeline.commands.registry.tables import SHORT, aliases, console, date, figures
from pipeline.tracking.ledger import history
from pipeline.tracking.registry import Registry
from pipeline.tracking.version import APPROVAL_TAG, VERDICTS_TAG, Version

if TYPE_CHECKING:
    from rich.tree import Tree


def show_(registry: Registry, args: argparse.Namespace) -> int:
    """The tree, or everything as JSON."""
    version = registry.find(args.model)
    moves = history(registry, version.name)
    if args.json:
        print(json.dumps({**asdict(version), "history": [asdict(move) for move in moves]}, indent=2))
        return EXIT_DONE
    tree = _lineage_tree(registry, version)
    if moves:
        branch = tree.add("history")
        for move in moves:
            branch.add(f"{date(move.time_ms)}  {move.by}: {move.action} version {move.version} to {move.alias}")
    console().print(tree)
    return EXIT_DONE


def _lineage_tree(registry: Registry, version: Version) -> "Tree":
    """The version, what it came from, and so on down to the data."""
    from rich.tree import Tree

    lineage: dict[str, Any] = json.loads(version.tags.get("lineage", "{}"))
    tree = Tree(f"{version.ref} {aliases(version)}")
    tree.add(f"package {version.digest[:SHORT]}")
    run = tree.add(f"run {lineage.get('run')}, {lineage.get('samples_seen', 0):,} samples seen")
    run.add(f"code {lineage.get('git_commit')}" + (", with uncommitted changes" if lineage.get("git_dirty") else ""))
    for name in ("config_digest", "data_digest", "latents_digest", "autoencoder_digest"):
        if lineage.get(name):
            run.add(f"{name.removesuffix('_digest')} {lineage[name][:SHORT]}")
    if lineage.get("autoencoder_digest"):
        first = registry.with_digest(lineage["autoencoder_digest"])
        run.add(_lineage_tree(registry, first) if first else "this autoencoder is not registered")
    if version.evaluation:
        tree.add(f"figures {figures(version)}, protocol {version.evaluation['protocol'].get('name')}")
    if VERDICTS_TAG in version.tags:
        judged = json.loads(version.tags[VERDICTS_TAG])
        failed = [verdict["gate"] for verdict in judged["verdicts"] if not verdict["passed"]]
        tree.add(f"gates for {judged['alias']}: " + (f"failed {', '.join(failed)}" if failed else "passed"))
    if APPROVAL_TAG in version.tags:
        tree.add(f"approved by {version.tags[APPROVAL_TAG]}")
    return tree
