"""Keep models by name and version: register, list, show, compare, promote through gates, roll back, verify, copy.

Example:
    tessera registry register runs/shapes-vq
    tessera registry list
    tessera registry show vq-autoencoder@champion
    tessera registry approve vq-autoencoder@candidate
    tessera registry promote vq-autoencoder --dry-run  # the candidate, against configs/promote.yaml
    tessera registry promote vq-autoencoder
    tessera registry rollback vq-autoencoder
    tessera registry diff latent-unet@champion latent-unet@candidate --out both.png
    tessera registry verify latent-unet
    tessera registry ship runs/shapes-vq
    tessera registry copy latent-unet@champion --to https://mlflow.example.org

Exit codes: 0 done, 1 refused by a gate, damaged or not sent, 2 wrong use or no server.
"""

import argparse
import importlib
from pathlib import Path

DEFAULT_GATES = Path("configs/promote.yaml")
VERSION = "NAME[@ALIAS|/V]"
MODULES = {
    "register": "versions",
    "list": "versions",
    "verify": "versions",
    "copy": "versions",
    "diff": "diff",
    "ship": "runs",
    "reap": "runs",
    "show": "show",
    "promote": "moves",
    "rollback": "moves",
    "approve": "moves",
}
"""Where each verb's function stands, which has the verb's name with an underscore after it."""


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
    show.add_argument("model", metavar=VERSION)
    approve = verbs.add_parser("approve", parents=[shared], help="write down that you want this version to go live")
    approve.add_argument("model", metavar=VERSION)
    promote = verbs.add_parser("promote", parents=[shared], help="make a version the champion, if it passes the gates")
    promote.add_argument("name", metavar="NAME")
    promote.add_argument("version", metavar="VERSION", nargs="?", type=int, help="default: the candidate")
    promote.add_argument("--alias", default="champion", help="what it shall be (default: champion)")
    promote.add_argument("--gates", type=Path, default=DEFAULT_GATES, help=f"bounds (default: {DEFAULT_GATES})")
    promote.add_argument("--dry-run", action="store_true", help="show the gates' verdicts and change nothing")
    back = verbs.add_parser("rollback", parents=[shared], help="make the previous version the champion again")
    back.add_argument("name", metavar="NAME")
    verify = verbs.add_parser("verify", parents=[shared], help="download versions and compare them with their digests")
    verify.add_argument("model", metavar=VERSION, help="one version, or every version of a name")
    copy = verbs.add_parser("copy", parents=[shared], help="carry a version to another server and verify it there")
    copy.add_argument("model", metavar=VERSION)
    copy.add_argument("--to", required=True, metavar="URI", help="the other tracking server")
    copy.add_argument("--name", help="registered name there (default: the same)")
    diff = verbs.add_parser("diff", parents=[shared], help="what two versions differ in")
    diff.add_argument("first", metavar=VERSION)
    diff.add_argument("second", metavar=VERSION)
    diff.add_argument("--out", type=Path, help="a .png for both previews side by side")
    ship = verbs.add_parser("ship", parents=[shared], help="send what the server lacks of a run, such as of an air gap")
    ship.add_argument("run", type=Path, metavar="RUN", help="run folder")
    verbs.add_parser("reap", parents=[shared], help="mark runs KILLED whose machine was lost")


def run(args: argparse.Namespace) -> int:
    """Do the verb."""
    from pipeline.tracking.registry import Registry

    module = importlib.import_module(f"{__name__}.{MODULES[args.verb]}")
    verb = getattr(module, f"{args.verb}_")
    return int(verb(args) if args.verb in ("ship", "reap") else verb(Registry(args.uri), args))
