"""A small training under a real Slurm that is hurt every few minutes, held against one that nobody disturbs.

`python -m benchmarks.chaos --minutes 60 --every 180` starts a Slurm of two nodes on this machine and trains the debug
recipe over both. In turn it tells the job to stop, kills a rank, kills a torchrun, and fails a node. When the time is
over the job is stopped, a quiet run makes the same number of steps, and both are compared: every number of every step,
and every weight, moment and average, bit for bit. Prints what was done, and where the time went.

`--duty 0.2` lets the ranks run a fifth of the time, by SIGSTOP and SIGCONT, where a machine has other work to do.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from contextlib import suppress
from itertools import cycle
from pathlib import Path

import torch

from pipeline.checkpoint.reader import newest_verified, read_tensors
from pipeline.distributed.fragments import Field
from pipeline.tracking.effective import breakdown
from pipeline.tracking.journal import read_all_events
from tests.launch.disturbed import Disturbed, processes, words
from tests.launch.slurm_cluster import SlurmCluster
from tests.runs import drawn_shards, losses, run

ENDLESS = 10_000_000
FIELDS: tuple[Field, ...] = ("param", "exp_avg", "exp_avg_sq", "ema")


def main() -> int:
    """Disturb, stop, repeat in peace, compare; exit code 1 when anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="of disturbance (default: 60)")
    parser.add_argument("--every", type=float, default=180.0, help="seconds between two disturbances (default: 180)")
    parser.add_argument("--duty", type=float, default=1.0, help="share of the time that ranks may run (default: 1)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as name:
        place = Path(name)
        drawn_shards(place, 90)
        cluster = SlurmCluster(place / "slurm")
        try:
            version = cluster.run("sbatch", "--version").strip()
            job = Disturbed(cluster, place, "hurt", *words("hurt", ENDLESS))
            count = disturb(job, time.monotonic() + 60 * args.minutes, args.every, args.duty)
        finally:
            cluster.close()
        return report(place, count, version)


def disturb(job: Disturbed, until: float, every: float, duty: float) -> dict[str, int]:
    """Hurt the job in turn until the time is over, then stop it for good; how often each was done."""
    ways = {"told to stop": job.tell, "rank killed": job.kill_a_rank}
    ways |= {"torchrun killed": job.kill_a_torchrun, "node failed": job.lose_a_node}
    count = dict.fromkeys(ways, 0)
    for name in cycle(ways):
        job.after_the_next_commit()
        go_on(job.run, min(every, max(until - time.monotonic(), 0)), duty)
        if time.monotonic() >= until:
            break
        ways[name]()
        job.restarted()
        count[name] += 1
        print(f"{time.strftime('%H:%M:%S')} {name}, step {max(losses(job.run))}", flush=True)
    job.tell()
    job.restarted()
    job.cluster.run("scancel", job.number)
    job.ended()
    return count


def go_on(run_dir: Path, seconds: float, duty: float) -> None:
    """Let the job train, its ranks for a share `duty` of each second."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ranks = processes(run_dir)
        if duty < 1:
            send(ranks, signal.SIGSTOP)
            time.sleep(1 - duty)
            send(ranks, signal.SIGCONT)
        time.sleep(duty)


def send(ranks: list[int], number: signal.Signals) -> None:
    """A signal to each that is still there."""
    for pid in ranks:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def report(place: Path, count: dict[str, int], version: str) -> int:
    """The quiet run of as many steps, and the comparison."""
    hurt, quiet = place / "hurt", place / "quiet"
    newest = newest_verified(hurt / "checkpoints")
    assert newest is not None, "nothing was saved"
    num_steps = newest.progress["step"]
    run(place, "launch", "torchrun", "--nproc", "2", *words("quiet", num_steps))
    numbers = {step: values for step, values in losses(hurt).items() if step <= num_steps}
    expected = losses(quiet)
    judged = {name for name in expected[num_steps] if name not in numbers[num_steps]}  # a run that ends also validates
    for name in judged:
        del expected[num_steps][name]
    different = [step for step in expected if expected[step] != numbers[step]]
    tensors = compare(hurt / "checkpoints", quiet / "checkpoints")
    said = ", ".join(f"{number} x {name}" for name, number in count.items())
    print(f"torch {torch.__version__}, {version}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"{said}; {num_steps} steps, {newest.number} generations")
    print(f"numbers of steps that differ: {len(different)} of {num_steps}")
    print(f"tensors that differ: {sum(not same for same in tensors.values())} of {len(tensors)}")
    print(breakdown(read_all_events(hurt)))
    return int(bool(different) or not all(tensors.values()) or not tensors)


def compare(hurt: Path, quiet: Path) -> dict[str, bool]:
    """For every weight, moment and average of the newest generations: are all its bits the same?"""
    found = {}
    newest = newest_verified(quiet)
    assert newest is not None
    for part in newest.scalars:
        for field in FIELDS:
            ours, theirs = (read_tensors(folder, part, field) for folder in (hurt, quiet))
            assert ours.keys() == theirs.keys()
            found |= {f"{part}/{field}/{name}": torch.equal(ours[name], theirs[name]) for name in ours}
    return found


if __name__ == "__main__":
    sys.exit(main())
