"""The console program `tessera`: one line for each command, whose module is imported only when it is chosen."""

import sys

from pipeline.command_line import run_program

ABOUT = "Train, judge and release text-to-image models."
COMMANDS = {
    "train": "train either stage from a config; the same command again resumes",
    "sample": "draw pictures for prompts with a trained model",
    "evaluate": "measure a model on held-out data, with a protocol stamp",
    "export": "write a trained model as one folder that loads by itself",
    "plan": "memory, time, cost and storage of a config before the launch",
    "doctor": "check this machine, and name the remedy for what is missing",
    "registry": "register, list, show, promote, roll back and verify models",
}


def main() -> int:
    """Entry point of the console script."""
    return run_program("tessera", ABOUT, COMMANDS, "pipeline.commands", sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
