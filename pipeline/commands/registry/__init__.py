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
    tessera registry reap
    tessera registry copy latent-unet@champion --to https://mlflow.example.org

Exit codes: 0 done, 1 refused by a gate, damaged or not sent, 2 wrong use or no server.
"""

import argparse
import importlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

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

    register = _verb(verbs, "register", "make a model a version, and the candidate")
    register.add_argument("model", metavar="REF", help="run folder or exported folder")
    register.add_argument("--name", help="registered name (default: the kind, vq-autoencoder or latent-unet)")
    _verb(verbs, "list", "all models and their versions")
    show = _verb(verbs, "show", "where a version came from, its figures and its history")
    show.add_argument("model", metavar=VERSION)
    approve = _verb(verbs, "approve", "write down that you want this version to go live")
    approve.add_argument("model", metavar=VERSION)
    promote = _verb(verbs, "promote", "make a version the champion, if it passes the gates")
    promote.add_argument("name", metavar="NAME")
    promote.add_argument("version", metavar="VERSION", nargs="?", type=int, help="default: the candidate")
    promote.add_argument("--alias", default="champion", help="what it shall be (default: champion)")
    promote.add_argument("--gates", type=Path, default=DEFAULT_GATES, help=f"bounds (default: {DEFAULT_GATES})")
    promote.add_argument("--dry-run", action="store_true", help="show the gates' verdicts and change nothing")
    back = _verb(verbs, "rollback", "make the previous version the champion again")
    back.add_argument("name", metavar="NAME")
    verify = _verb(verbs, "verify", "download versions and compare them with their digests")
    verify.add_argument("model", metavar=VERSION, help="one version, or every version of a name")
    copy = _verb(verbs, "copy", "carry a version to another server and verify it there")
    copy.add_argument("model", metavar=VERSION)
    copy.add_argument("--to", required=True, metavar="URI", help="the other tracking server")
    copy.add_argument("--name", help="registered name there (default: the same)")
    diff = _verb(verbs, "diff", "what two versions differ in")
    diff.add_argument("first", metavar=VERSION)
    diff.add_argument("second", metavar=VERSION)
    diff.add_argument("--out", type=Path, help="a .png for both previews side by side")
    ship = _verb(verbs, "ship", "send what the server lacks of a run, such as of an air gap")
    ship.add_argument("run", type=Path, metavar="RUN", help="run folder")
    _verb(verbs, "reap", "mark runs KILLED whose machine was lost")


def _verb(verbs: "Verbs", name: str, about: str) -> argparse.ArgumentParser:
    """The parser of one verb, whose help ends with its lines of the example above."""
    assert __doc__ is not None
    lines = [line for line in __doc__.splitlines() if line.split()[:3] == ["tessera", "registry", name]]
    parser = verbs.add_parser(
        name,
        help=about,
        description=f"{about[0].upper()}{about[1:]}.",
        epilog="\n".join(["Example:", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--uri", help="tracking server (default: MLFLOW_TRACKING_URI, or runs/mlflow.db)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def run(args: argparse.Namespace) -> int:
    """Do the verb."""
    from pipeline.tracking.registry import Registry

    module = importlib.import_module(f"{__name__}.{MODULES[args.verb]}")
    verb = getattr(module, f"{args.verb}_")
    return int(verb(args) if args.verb in ("ship", "reap") else verb(Registry(args.uri), args))
