"""One way to run a console program of many commands: only the chosen command's module is imported.

A command is a module with `configure(parser)` and `run(args) -> exit code`; its docstring is its help. Called by
`python -m pipeline`, `python -m data_tools` and `python -m launch`.
"""

import argparse
import difflib
import importlib
import sys
from collections.abc import Mapping, Sequence

from pipeline.config import UserError
from pipeline.redact import redact_text

EXIT_DONE, EXIT_FAILED, EXIT_WRONG_USE, EXIT_INTERRUPTED = 0, 1, 2, 130


def run_program(program: str, about: str, commands: Mapping[str, str], folder: str, argv: Sequence[str]) -> int:
    """Run `argv[0]` as the command `folder.argv[0]`; `commands` maps each name to its line in `--help`.

    Returns the exit code: 0 done, 1 failed, 2 wrong use (one line on stderr), 130 interrupted.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview(program, about, commands))
        return EXIT_DONE if argv else EXIT_WRONG_USE
    name, *rest = argv
    try:
        if name not in commands:
            near = difflib.get_close_matches(name, commands, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"see {program} --help"
            raise UserError(f"{name}: no such command; {remedy}")
        command = importlib.import_module(f"{folder}.{name.replace('-', '_')}")
        parser = argparse.ArgumentParser(
            f"{program} {name}", description=command.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.configure(parser)
        return int(command.run(parse(parser, rest)))
    except UserError as error:
        print(f"{program}: {redact_text(str(error))}", file=sys.stderr)
        return EXIT_WRONG_USE
    except KeyboardInterrupt:
        print(f"{program}: interrupted; the same command goes on from here", file=sys.stderr)
        return EXIT_INTERRUPTED


def parse(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """As `parse_args`, but `a.b=c` may also follow an option, where argparse takes no more plain words."""
    args, late = parser.parse_known_args(words)
    overrides = [word for word in late if "=" in word and not word.startswith("-")]
    if late and (overrides != late or not hasattr(args, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(late)}")
    if late:
        args.overrides = [*args.overrides, *late]
    return args


def _overview(program: str, about: str, commands: Mapping[str, str]) -> str:
    width = max(map(len, commands)) + 2
    rows = "\n".join(f"  {name:<{width}}{line}" for name, line in commands.items())
    footer = f"{program} COMMAND --help shows the arguments and an example."
    return f"usage: {program} COMMAND ...\n\n{about}\n\ncommands:\n{rows}\n\n{footer}"
