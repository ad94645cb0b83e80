"""Shows the log of a submitted job until the job has ended. Called by `tessera-launch slurm --follow`."""

import subprocess
import sys
import time
from pathlib import Path

from pipeline.command_line import EXIT_DONE, EXIT_FAILED

ENDED = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT")
"""States that Slurm does not leave again; a requeued job is PENDING or REQUEUED in between."""

POLL_SECONDS = 2.0
NUM_SILENT = 5
"""Answers without the job, in a row, after which it is gone: a busy controller sometimes gives none."""


def follow(number: str, log: Path, poll_seconds: float = POLL_SECONDS) -> int:
    """Print what is appended to `log` until job `number` has ended, over all its starts.

    Returns:
        The exit code for the console: done for a completed job. Ctrl-C stops the looking, not the job.
    """
    shown = num_silent = 0
    try:
        while True:
            state = state_of(number)
            shown += _print_from(log, shown)
            num_silent = num_silent + 1 if state is None else 0
            if state in ENDED or num_silent == NUM_SILENT:
                print(f"job {number}: {state or 'no longer known to Slurm'}", file=sys.stderr)
                return EXIT_DONE if state == "COMPLETED" else EXIT_FAILED
            time.sleep(poll_seconds)
    except KeyboardInterrupt:
        print(f"\njob {number} goes on; cancel it: scancel {number}", file=sys.stderr)
        return EXIT_DONE


def state_of(number: str) -> str | None:
    """Slurm's word for the state of a job; None when it does not know the job any more."""
    words = ["scontrol", "--oneliner", "show", "job", number]
    answer = subprocess.run(words, capture_output=True, text=True, check=False)
    fields = dict(word.split("=", 1) for word in answer.stdout.split() if "=" in word)
    return fields.get("JobState")


def _print_from(log: Path, start: int) -> int:
    """Print the log from byte `start`; returns how many bytes that were."""
    if not log.exists():
        return 0
    with log.open("rb") as file:
        file.seek(start)
        data = file.read()
    sys.stdout.write(data.decode(errors="replace"))
    sys.stdout.flush()
    return len(data)
