"""`tessera registry ship` and `reap`: runs whose follower could not do its work."""

import argparse
import json
import logging

from pipeline.command_line import EXIT_DONE, EXIT_FAILED
from pipeline.tracking.lease import reap
from pipeline.tracking.server import answering, connect, experiment_id, tracking_uri
from pipeline.tracking.shipper import ship, shipped_run_id


def ship_(args: argparse.Namespace) -> int:
    """Send a run folder's journal; what the server has is not sent again."""
    logging.basicConfig(format="%(message)s")
    done = ship(args.run, args.uri)
    if done:
        run_id = shipped_run_id(args.run, args.uri)
        print(json.dumps({"run_id": run_id}) if args.json else f"{args.run}: everything settled is run {run_id}")
    return EXIT_DONE if done else EXIT_FAILED


def reap_(args: argparse.Namespace) -> int:
    """Find the runs that nobody looks after."""
    address = tracking_uri(args.uri)
    client = connect(address)
    with answering(address):
        lost = reap(client, experiment_id(client))
    names = [str(run.info.run_name) for run in lost]
    print(json.dumps(names) if args.json else "\n".join(f"{name}: KILLED" for name in names) or "no run is lost")
    return EXIT_DONE
