"""The console program `tessera-launch`: doors into the same `tessera train`, and one for the data tools."""

import sys

from pipeline.command_line import run_program

ABOUT = "Check a config, copy code and config into the run folder, render a readable script, and start it."
COMMANDS = {
    "local": "one process on this machine",
    "torchrun": "several processes on this machine, or on machines without a scheduler",
    "slurm": "a Slurm job that saves before its time is up and queues itself again",
    "kubernetes": "print a PyTorchJob for Kubeflow's training operator",
    "array": "a data tool as a Slurm job array",
}


def main() -> int:
    """Entry point of the console script."""
    return run_program("tessera-launch", ABOUT, COMMANDS, "launch.commands", sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
