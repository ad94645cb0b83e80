"""`tessera registry promote`, `rollback` and `approve`."""

import argparse
import json
from dataclasses import asdict

from pipeline.command_line import EXIT_DONE, EXIT_FAILED
from pipeline.commands.registry.tables import print_table, print_version
from pipeline.tracking.gates import load_gates
from pipeline.tracking.promotion import Decision, approve, assess, promote, rollback
from pipeline.tracking.registry import Registry


def promote_(registry: Registry, args: argparse.Namespace) -> int:
    """Judge, and move the alias if nothing speaks against it."""
    version = registry.find(f"{args.name}/{args.version}" if args.version else f"{args.name}@candidate")
    gates = load_gates(args.gates, args.name, version.tags.get("kind", ""))
    decision = (assess if args.dry_run else promote)(registry, version, gates, args.alias)
    if args.json:
        print(json.dumps({"passed": decision.passed, **asdict(decision)}, indent=2))
    else:
        rows = [[v.gate, v.value, v.bound, "passed" if v.passed else "FAILED"] for v in decision.verdicts]
        print_table(["gate", "value", "asked for", "verdict"], rows)
        print(f"{version.ref}: {_outcome(decision, args)}")
    return EXIT_DONE if decision.passed else EXIT_FAILED


def _outcome(decision: Decision, args: argparse.Namespace) -> str:
    before = f", before it version {decision.champion.number}" if decision.champion else ""
    if args.dry_run:
        return f"would be {args.alias}{before}" if decision.passed else "would be refused"
    return f"is {args.alias} now{before}" if decision.passed else "refused, nothing was changed"


def rollback_(registry: Registry, args: argparse.Namespace) -> int:
    """Exchange the champion and the version before it."""
    version = rollback(registry, args.name)
    print_version(args, version, f"{version.ref} is champion again")
    return EXIT_DONE


def approve_(registry: Registry, args: argparse.Namespace) -> int:
    """A person says yes."""
    version = approve(registry, registry.find(args.model))
    print_version(args, version, f"{version.ref} is approved by {version.tags['approved_by']}")
    return EXIT_DONE
