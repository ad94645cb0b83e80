"""Kills at every point of a save, and damage to every file it leaves; for our checkpoints and for those of others.

A process that has the libraries loaded forks the ranks of each trial, so that a trial costs a second. The points are
found by a save that is only watched: each call that changes the file system is one, and the middle of each file that a
tensor library writes. Used by the slow tests and, with DeepSpeed's and accelerate's own savers, by `benchmarks.faults`.
"""

import builtins
import io
import os
import pickle
import resource
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from tests.ranks import free_port

NUM_RANKS = 2
CALLS: tuple[tuple[Any, str], ...] = (
    *((os, name) for name in ("mkdir", "fsync", "replace", "rename", "unlink", "rmdir")),
    *((shutil, "rmtree"), (torch, "save"), (builtins, "open"), (io, "open")),
)
WRITERS = ("save", "save_file", "open")


@dataclass(frozen=True)
class Point:
    """A moment of a save on one rank."""

    rank: int
    """Who is killed."""
    number: int
    """At which call."""
    within: bool
    """In the middle of the file that the call writes, rather than before the call."""
    name: str
    """The call and its file."""


class Injector:
    """Counts the calls of this process that change files, and kills it at the chosen one."""

    def __init__(self, point: Point | None, save_files: list[tuple[Any, str]]) -> None:
        self.point, self.names = point, list[str]()
        for owner, name in (*CALLS, *save_files):
            setattr(owner, name, self._wrap(name, getattr(owner, name)))

    def _wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if name == "open" and not set("wax+") & set(str((*args[1:2], kwargs.get("mode", ""))[0])):
                return call(*args, **kwargs)
            self.names.append(f"{name} {_file_of(args)}")
            if self.point is not None and len(self.names) == self.point.number:
                if not self.point.within:
                    os.kill(os.getpid(), signal.SIGKILL)
                if name == "open":  # the file is there, and empty
                    call(*args, **kwargs)
                    os.kill(os.getpid(), signal.SIGKILL)
                _die_at_half_of_the_file()
            return call(*args, **kwargs)

        return counted

    def points(self, rank: int) -> list[Point]:
        """All points of what was watched."""
        found = []
        for number, name in enumerate(self.names, 1):
            found.append(Point(rank, number, False, f"before {name}"))
            if name.split()[0] in WRITERS:
                found.append(Point(rank, number, True, f"within {name}"))
        return found


def _die_at_half_of_the_file() -> None:
    """The kernel ends this process when a file that it writes grows over two kilobytes: the middle of any of ours."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def _file_of(args: tuple[Any, ...]) -> str:
    """The last part of the first path among the arguments."""
    paths = [a for a in args if isinstance(a, str | Path)]
    return Path(paths[0]).name if paths else ""


def load_libraries() -> None:
    """What the ranks would else import one by one: torch's optimizers alone bring a compiler along."""
    import accelerate  # noqa: F401
    import deepspeed  # noqa: F401

    from pipeline.distributed import accelerate_engine, deepspeed_engine  # noqa: F401

    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])


def forked(body: Callable[..., Any], *args: Any) -> list[Any]:
    """`body(*args)` on two forked ranks: their results, or None for one that was killed."""
    port, pipes, children = free_port(), [], []
    for rank in range(NUM_RANKS):
        receiver, sender = Pipe(duplex=False)
        if (child := os.fork()) == 0:
            _run_rank(rank, port, sender, body, args)
        sender.close()
        pipes.append(receiver)
        children.append(child)
    results = [_result(pipe) for pipe in pipes]
    for child in children:
        os.waitpid(child, 0)
    return results


def _run_rank(rank: int, port: int, sender: Connection, body: Callable[..., Any], args: Any) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": NUM_RANKS, "LOCAL_WORLD_SIZE": NUM_RANKS}
    os.environ |= {**{k: str(v) for k, v in names.items()}, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)  # the parent's pool of threads is not in this process
    if not os.environ.get("FAULTS_SHOW"):
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1), os.dup2(silence, 2)
    try:
        result: Any = body(*args)
    except BaseException as error:  # a survivor's collective, or a library that cannot load
        result = error
    try:
        sender.send_bytes(pickle.dumps(result))
    except Exception:
        sender.send_bytes(pickle.dumps(RuntimeError(repr(result))))
    os._exit(0)


def _result(pipe: Connection) -> Any:
    try:
        return pickle.loads(pipe.recv_bytes())
    except EOFError:
        return None


def damaged(folder: Path, target: Path) -> list[tuple[str, Path]]:
    """Copies of `folder` below `target`, in each of which one file of the newest save is cut in half or has one bit
    turned; each with its name."""
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    found = []
    for number, file in enumerate(files):
        for kind in ("cut", "flip"):
            place = target / f"{kind}-{number}"
            shutil.copytree(folder, place, symlinks=True)
            data = bytearray((place / file).read_bytes())
            if kind == "cut":
                data = data[: len(data) // 2]
            else:
                data[len(data) // 2] ^= 16
            (place / file).write_bytes(data)
            found.append((f"{kind} {file}", place))
    return found
