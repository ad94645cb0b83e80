"""`tessera registry show`: one version, what it came from, and so on down to the data, as a tree."""

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pipeline.command_line import EXIT_DONE
from pipeline.commands.registry.tables import SHORT, aliases, console, date, figures
from pipeline.tracking.download import data_manifest
from pipeline.tracking.ledger import history
from pipeline.tracking.registry import Registry
from pipeline.tracking.version import APPROVAL_TAG, VERDICTS_TAG, Version

if TYPE_CHECKING:
    from rich.tree import Tree

MANY_SHARDS = 4
"""Shards that the tree names; the others are counted, and listed by `--json`."""


def show_(registry: Registry, args: argparse.Namespace) -> int:
    """The tree, or everything as JSON."""
    version = registry.find(args.model)
    moves = history(registry, version.name)
    if args.json:
        known = {"history": [asdict(move) for move in moves], "data_manifest": data_manifest(registry, version)}
        print(json.dumps({**asdict(version), **known}, indent=2))
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
    run.add(f"config {str(lineage.get('config_digest'))[:SHORT]}")
    _add_data(run, registry, version, lineage)
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


def _add_data(run: "Tree", registry: Registry, version: Version, lineage: dict[str, Any]) -> None:
    """The data down to its shards, as far as the version knows them."""
    digest, latents = str(lineage.get("data_digest")), lineage.get("latents_digest")
    branch = run.add(f"latents {latents[:SHORT]} of pictures {digest[:SHORT]}" if latents else f"data {digest[:SHORT]}")
    if lineage.get("selection_digest"):
        branch.add(f"only the samples of selection {lineage['selection_digest'][:SHORT]}")
    manifest = data_manifest(registry, version)
    if manifest is None:
        branch.add(f"{lineage.get('data_url')}, whose shards were out of reach when this was registered")
        return
    shards = manifest["shards"]
    place = branch.add(f"{lineage.get('data_url')}, {sum(shard['num_samples'] for shard in shards):,} samples")
    for shard in shards[:MANY_SHARDS]:
        place.add(f"{shard['name']} {shard['sha256'][:SHORT]}, {shard['num_samples']:,} samples")
    if len(shards) > MANY_SHARDS:
        place.add(f"and {len(shards) - MANY_SHARDS:,} more shards")
