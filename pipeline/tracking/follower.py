"""A second process beside the trainer that ships its journal at every commit, and notices when the trainer dies.

`tessera train` opens a `Follower` on rank 0. Training never waits for it and never hears of its troubles: its lines go
to RUN/journal/follower.log. When the trainer is gone without a word, its run is marked KILLED.
"""

import argparse
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from pipeline.config import UserError
from pipeline.tracking.journal import FOLDER, attempt_files, read_all_events
from pipeline.tracking.lease import RENEW_SECONDS
from pipeline.tracking.shipper import heartbeat, ship
from pipeline.tracking.system import SystemLog

LOG_NAME = "follower.log"
POLL_SECONDS = 1.0
SHIP_SECONDS = 10.0
"""Least pause between two shipments while training goes on: each reads the journal anew, on the trainer's machine."""
NICENESS = 10
"""The trainer's processor time comes first."""
RETRY_SECONDS = 60.0
"""Pause between two tries to reach a server that did not answer."""

_NEWS = (b'"kind":"params"', b'"kind":"committed"', b'"kind":"ended"')
"""Events after which there is something to send."""


class Follower:
    """The trainer's end: starts the process, and at the end gives it a moment to send the rest."""

    def __init__(self, run_dir: Path | str, uri: str | None = None, patience_seconds: float = 30.0) -> None:
        """Start following `run_dir`, after the first event of this process's journal.

        Args:
            uri: tracking server; by default that of `tracking_uri()`.
            patience_seconds: how long `close` waits for a slow server.
        """
        self.patience_seconds = patience_seconds
        folder = Path(run_dir) / FOLDER
        starts = [event for event in read_all_events(run_dir) if event.kind == "started"]
        assert starts and starts[-1].body["pid"] == os.getpid(), "write journal.params() first: older attempts are over"
        command = [sys.executable, "-m", __name__, str(run_dir), "--parent", str(os.getpid())]
        # The address may hold a password: it travels where `ps` does not show it.
        environment = {**os.environ, **({"MLFLOW_TRACKING_URI": uri} if uri else {})}
        with (folder / LOG_NAME).open("ab") as out:
            # A session of its own: Ctrl-C and the signals of a launcher are for the trainer, which then ends in order.
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, env=environment
            )

    def __enter__(self) -> "Follower":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Call after `Journal.ended`: waits until all is sent; if that takes too long, it goes on alone."""
        try:
            self.process.wait(self.patience_seconds)
        except subprocess.TimeoutExpired:
            print(f"tracking: a slow server; process {self.process.pid} goes on sending", file=sys.stderr)


def follow(run_dir: Path, parent: int) -> None:
    """Ship whenever there is news, until the run has ended or the process `parent` is gone."""
    news, system, waiting = _News(run_dir), SystemLog(run_dir), False
    due_seconds, beat_seconds = 0.0, time.monotonic() + RENEW_SECONDS
    while True:
        gone = os.getppid() != parent
        waiting |= news.look()
        over = gone or news.ended
        now_seconds = time.monotonic()
        system.tick()
        if (waiting and now_seconds >= due_seconds) or over:
            waiting = not ship(run_dir, dead=gone and not news.ended)
            due_seconds = time.monotonic() + (RETRY_SECONDS if waiting else SHIP_SECONDS)
        elif not waiting and now_seconds >= beat_seconds:
            heartbeat(run_dir)
            beat_seconds = time.monotonic() + RENEW_SECONDS
        if over:
            if waiting:
                logging.warning("not everything was sent; later: tessera registry ship %s", run_dir)
            return
        time.sleep(POLL_SECONDS)


class _News:
    """Reads what was added to the journal since the last look, for a few words only: a long run has many events."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.offsets = {path: path.stat().st_size for _, path in attempt_files(run_dir)[:-1]}
        self.ended = False

    def look(self) -> bool:
        """True when something to send was written."""
        found = False
        for _, path in attempt_files(self.run_dir):
            with path.open("rb") as file:
                file.seek(self.offsets.get(path, 0))
                added = file.read()
            whole = added[: added.rfind(b"\n") + 1]
            self.offsets[path] = self.offsets.get(path, 0) + len(whole)
            found |= any(word in whole for word in _NEWS)
            self.ended |= _NEWS[-1] in whole
        return found


def main(argv: list[str]) -> None:
    """The follower's own process."""
    parser = argparse.ArgumentParser(__name__, description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--parent", type=int, required=True, help="process id of the trainer")
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(asctime)s %(message)s")
    # It ends when the trainer does; a signal to the whole job must not end it before the last events are sent.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICENESS)
    try:
        follow(args.run, args.parent)
    except UserError as error:
        logging.warning("%s", error)


if __name__ == "__main__":
    main(sys.argv[1:])
