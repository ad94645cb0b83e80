"""Make captioned pictures on the spot, as a folder of 000000.png beside 000000.txt.

shapes  one coloured shape on a coloured background, with a caption that a program can check; as many as you like
emoji   every emoji of the system's Noto font, with its Unicode name as caption

The same command again does nothing, or goes on where it was interrupted.

Example:
  tessera-data draw shapes --out pictures --num 10000 --size 32 --seed 0 --split train
  tessera-data draw emoji --out emoji --size 64
"""

import argparse
import json
from pathlib import Path

from data_tools.draw.folder import fill_folder
from pipeline.config import UserError


def configure(parser: argparse.ArgumentParser) -> None:
    """Two kinds of picture, each with its arguments."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="shapes|emoji")
    shapes = kinds.add_parser("shapes", help="one coloured shape on a coloured background")
    shapes.add_argument("--num", type=int, required=True, metavar="N", help="number of pictures")
    shapes.add_argument("--seed", type=int, default=0, metavar="K", help="another seed, other pictures (default 0)")
    shapes.add_argument(
        "--split", choices=("train", "held-out", "all"), default="all",
        help="captions to draw: a tenth of the 2240 is held out of train, to test what was never seen (default all)",
    )  # fmt: skip
    emoji = kinds.add_parser("emoji", help="the emoji of the system's Noto font")
    emoji.add_argument("--font", type=Path, metavar="PATH", help="NotoColorEmoji.ttf (default: the system's)")
    for kind, size in ((shapes, 32), (emoji, 64)):
        kind.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
        kind.add_argument("--size", type=int, default=size, metavar="S", help=f"side in pixels (default {size})")
        kind.add_argument("--json", action="store_true", help="print the summary as JSON")


def run(args: argparse.Namespace) -> int:
    """Draw, and say what lies in the folder."""
    if args.size < 8:
        raise UserError(f"--size {args.size}: too small to show anything; give 8 or more")
    num, drawn = _draw_shapes(args) if args.kind == "shapes" else _draw_emoji(args)
    summary = {"out": str(args.out), "pictures": num, "size": args.size, "drawn_now": drawn}
    print(json.dumps(summary) if args.json else f"{args.out}: {num} {args.kind} of {args.size} px with captions")
    return 0


def _draw_shapes(args: argparse.Namespace) -> tuple[int, bool]:
    from pipeline.data.shapes import captions_of, draw_shape  # brings torch

    if args.num < 1:
        raise UserError(f"--num {args.num}: nothing to draw; give 1 or more")
    captions = captions_of(args.split)
    recipe = {"kind": "shapes", "num": args.num, "size": args.size, "seed": args.seed, "split": args.split}
    drawn = fill_folder(args.out, recipe, args.num, lambda sample: draw_shape(args.seed, sample, args.size, captions))
    return args.num, drawn


def _draw_emoji(args: argparse.Namespace) -> tuple[int, bool]:
    from data_tools.draw.emoji import EmojiFont, find_font

    font = EmojiFont(args.font or find_font())
    emoji = list(font.captions().items())
    recipe = {"kind": "emoji", "num": len(emoji), "size": args.size}
    drawn = fill_folder(args.out, recipe, len(emoji), lambda n: (font.draw(emoji[n][0], args.size), emoji[n][1]))
    return len(emoji), drawn
