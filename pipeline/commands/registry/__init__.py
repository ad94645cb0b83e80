"""Keep models by name and version: register, list, show, promote through gates, roll back, verify.

Example:
    tessera registry register runs/shapes-vq
    tessera registry list
    tessera registry show vq-autoencoder@champion
    tessera registry approve vq-autoencoder@candidate
    tessera registry promote vq-autoencoder --dry-run  # the candidate, against configs/promote.yaml
    tessera registry promote vq-autoencoder
    tessera registry rollback vq-autoencoder
    tessera registry verify latent-unet

Exit codes: 0 done, 1 refused by a gate or damaged, 2 wrong use or no server.
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


def run(args: argparse.Namespace) -> int:
    """Do the verb."""
    from pipeline.tracking.registry import Registry

    module = importlib.import_module(f"{__name__}.{MODULES[args.verb]}")
    return int(getattr(module, f"{args.verb}_")(Registry(args.uri), args))
