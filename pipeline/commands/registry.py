"""Keep models by name and version: register, list, show, promote through gates, roll back, verify.

Example:
    tessera registry register runs/shapes-vq
    tessera registry list
    tessera registry show vq-autoencoder@champion
    tessera registry promote vq-autoencoder            # the candidate, if it passes configs/promote.yaml
    tessera registry rollback vq-autoencoder
    tessera registry verify latent-unet

Exit codes: 0 done, 1 refused by a gate or damaged, 2 wrong use or no server.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.command_line import EXIT_DONE, EXIT_FAILED
from pipeline.config import UserError

if TYPE_CHECKING:
    from rich.tree import Tree

    from pipeline.tracking.registry import Registry
    from pipeline.tracking.version import Version

DEFAULT_GATES = Path("configs/promote.yaml")
SHORT = 12
"""Characters of a digest that a person sees; `--json` has them all."""
PIPE_WIDTH = 160
"""Columns where the output is no terminal."""


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `tessera registry`."""
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--uri", help="tracking server (default: MLFLOW_TRACKING_URI, or runs/mlflow.db)")
    shared.add_argument("--json", action="store_true", help="print JSON")

    register = verbs.add_parser("register", parents=[shared], help="make a model a version, and the candidate")
    register.add_argument("model", metavar="REF", help="run folder or exported folder")
    register.add_argument("--name", help="registered name (default: the kind, vq-autoencoder or latent-unet)")
    verbs.add_parser("list", parents=[shared], help="all models and their versions")
    show = verbs.add_parser("show", parents=[shared], help="where a version came from, its figures and its history")
    show.add_argument("model", metavar="NAME[@ALIAS|/V]")
    promote = verbs.add_parser("promote", parents=[shared], help="make a version the champion, if it passes the gates")
    promote.add_argument("name", metavar="NAME")
    promote.add_argument("version", metavar="VERSION", nargs="?", type=int, help="default: the candidate")
    promote.add_argument("--alias", default="champion", help="what it shall be (default: champion)")
    promote.add_argument("--gates", type=Path, default=DEFAULT_GATES, help=f"bounds (default: {DEFAULT_GATES})")
    back = verbs.add_parser("rollback", parents=[shared], help="make the previous version the champion again")
    back.add_argument("name", metavar="NAME")
    verify = verbs.add_parser("verify", parents=[shared], help="download versions and compare them with their digests")
    verify.add_argument("model", metavar="NAME[@ALIAS|/V]", help="one version, or every version of a name")


def run(args: argparse.Namespace) -> int:
    """Do the verb."""
    from pipeline.tracking.registry import Registry

    verbs = {
        "register": _register,
        "list": _list,
        "show": _show,
        "promote": _promote,
        "rollback": _rollback,
        "verify": _verify,
    }
    return verbs[args.verb](Registry(args.uri), args)


def _register(registry: "Registry", args: argparse.Namespace) -> int:
    from pipeline.export import resolve

    version = registry.register(resolve(args.model), args.name)
    _print(args, version, f"{version.ref} {_aliases(version)}: {version.digest[:SHORT]}")
    return EXIT_DONE


def _list(registry: "Registry", args: argparse.Namespace) -> int:
    versions = [version for name in registry.names() for version in registry.versions(name)]
    if args.json:
        print(json.dumps([asdict(version) for version in versions], indent=2))
        return EXIT_DONE
    rows = [
        [v.name, str(v.number), _aliases(v), v.tags.get("samples_seen", ""), v.digest[:SHORT], _figures(v)]
        for v in versions
    ]
    _table(["model", "version", "alias", "samples seen", "digest", "figures"], rows)
    return EXIT_DONE


def _show(registry: "Registry", args: argparse.Namespace) -> int:
    from rich.console import Console

    from pipeline.tracking.promotion import history

    version = registry.find(args.model)
    moves = history(registry, version.name)
    if args.json:
        print(json.dumps({**asdict(version), "history": [asdict(move) for move in moves]}, indent=2))
        return EXIT_DONE
    tree = _lineage_tree(registry, version)
    if moves:
        branch = tree.add("history")
        for move in moves:
            branch.add(f"{_date(move.time_ms)}  {move.by}: {move.action} version {move.version} to {move.alias}")
    Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH).print(tree)
    return EXIT_DONE


def _promote(registry: "Registry", args: argparse.Namespace) -> int:
    from pipeline.tracking.gates import load_gates
    from pipeline.tracking.promotion import promote

    version = registry.find(f"{args.name}/{args.version}" if args.version else f"{args.name}@candidate")
    gates = load_gates(args.gates, args.name, version.tags.get("kind", ""))
    decision = promote(registry, version, gates, args.alias)
    if args.json:
        print(json.dumps({"passed": decision.passed, **asdict(decision)}, indent=2))
    else:
        rows = [[v.gate, v.value, v.bound, "passed" if v.passed else "FAILED"] for v in decision.verdicts]
        _table(["gate", "value", "asked for", "verdict"], rows)
        before = f", before it version {decision.champion.number}" if decision.champion else ""
        print(f"{version.ref}: {f'is {args.alias} now{before}' if decision.passed else 'refused, nothing was changed'}")
    return EXIT_DONE if decision.passed else EXIT_FAILED


def _rollback(registry: "Registry", args: argparse.Namespace) -> int:
    from pipeline.tracking.promotion import rollback

    version = rollback(registry, args.name)
    _print(args, version, f"{version.ref} is champion again")
    return EXIT_DONE


def _verify(registry: "Registry", args: argparse.Namespace) -> int:
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


def _lineage_tree(registry: "Registry", version: "Version") -> "Tree":
    """The version, what it came from, and so on down to the data."""
    from rich.tree import Tree

    lineage: dict[str, Any] = json.loads(version.tags.get("lineage", "{}"))
    tree = Tree(f"{version.ref} {_aliases(version)}")
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
        tree.add(f"figures {_figures(version)}, protocol {version.evaluation['protocol'].get('name')}")
    if "gates" in version.tags:
        judged = json.loads(version.tags["gates"])
        failed = [verdict["gate"] for verdict in judged["verdicts"] if not verdict["passed"]]
        tree.add(f"gates for {judged['alias']}: " + (f"failed {', '.join(failed)}" if failed else "passed"))
    return tree


def _figures(version: "Version") -> str:
    metrics = version.evaluation["metrics"] if version.evaluation else {}
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def _aliases(version: "Version") -> str:
    return " ".join(f"@{alias}" for alias in version.aliases)


def _date(time_ms: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _print(args: argparse.Namespace, version: "Version", line: str) -> None:
    print(json.dumps(asdict(version), indent=2) if args.json else line)


def _table(columns: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else PIPE_WIDTH).print(table)
