"""Reading a generation, whatever world size, ZeRO stage or engine wrote it.

Every file says in its header which run of which tensor lies where in it; a reader puts together the runs that it is
asked for, and touches no other byte. Called by `store` and, without torch.distributed, by the export and evaluation.
"""

import json
import logging
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from pipeline.checkpoint.generation import DamagedError, Generation, committed
from pipeline.config import UserError
from pipeline.distributed.fragments import Field

INDEX = "index"
"""Key of the safetensors header under which a file describes its runs."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """Elements [offset, offset + length) of a flattened tensor, stored at [start, start + length) of a file's `key`."""

    part: str
    field: str
    name: str
    shape: tuple[int, ...]
    offset: int
    length: int
    key: str
    start: int


class GenerationReader:
    """All runs of a generation; `part(name)` is the `Reader` that a `Stateful` restores from."""

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self._files = [safe_open(str(generation.path / r.name), framework="pt") for r in generation.files]
        self._runs: dict[tuple[str, str, str], list[tuple[Run, int]]] = defaultdict(list)
        for number, file in enumerate(self._files):
            for run in decode_index(file.metadata()[INDEX]):
                self._runs[run.part, run.field, run.name].append((run, number))

    def part(self, name: str) -> "PartReader":
        """The state of one part.

        Raises:
            UserError: the generation has no such part.
        """
        if name not in self.generation.scalars:
            there = ", ".join(sorted(self.generation.scalars))
            raise UserError(f"{self.generation.path}: no part {name!r} (it holds {there}); start a new run folder")
        return PartReader(self, name)

    def tensors(self, part: str, field: Field) -> dict[str, Tensor]:
        """Every tensor of that field, whole and in its shape, by name."""
        reader = self.part(part)
        names = [name for p, f, name in self._runs if (p, f) == (part, field)]
        shapes = {name: self._runs[part, field, name][0][0].shape for name in names}
        return {name: reader.read(name, field, 0, math.prod(s)).view(s) for name, s in shapes.items()}

    def rank_tensor(self, rank: int, key: str) -> Tensor | None:
        """A tensor that rank `rank` stored for itself; None when there was no such rank or tensor."""
        if rank >= len(self._files) or key not in self._files[rank].keys():  # noqa: SIM118 (not a mapping)
            return None
        tensor: Tensor = self._files[rank].get_tensor(key)
        return tensor

    def runs(self, part: str, field: str, name: str) -> list[tuple[Run, int]]:
        """The stored runs of one tensor with the number of their file."""
        return self._runs.get((part, field, name), [])

    def slice(self, file: int, key: str, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of the one-dimensional tensor `key` of a file."""
        run: Tensor = self._files[file].get_slice(key)[start:stop]
        return run


@dataclass(frozen=True)
class PartReader:
    """See `fragments.Reader`."""

    source: GenerationReader
    name: str

    @property
    def scalars(self) -> Mapping[str, Any]:
        return self.source.generation.scalars[self.name]

    def shape(self, name: str, field: Field) -> tuple[int, ...] | None:
        runs = self.source.runs(self.name, field, name)
        return runs[0][0].shape if runs else None

    def read(self, name: str, field: Field, offset: int, length: int) -> Tensor:
        pieces, covered = [], offset
        for run, file in sorted(self.source.runs(self.name, field, name), key=lambda pair: pair[0].offset):
            begin, end = max(run.offset, covered), min(run.offset + run.length, offset + length)
            if begin == covered and begin < end:
                start = run.start + begin - run.offset
                pieces.append(self.source.slice(file, run.key, start, start + end - begin))
                covered = end
        if covered < offset + length or (not pieces and self.shape(name, field) is None):
            raise UserError(f"{self.source.generation.path}: {self.name} holds no whole {field} {name!r}")
        return torch.cat(pieces) if len(pieces) != 1 else pieces[0]


def newest_verified(directory: Path | str) -> Generation | None:
    """The newest generation whose files all match their digests; None when there is none. Changes nothing on disk.

    Safe beside a training run: a generation that is pruned meanwhile counts as damaged.
    """
    for path in committed(Path(directory)):
        try:
            generation = Generation.open(path)
            generation.verify()
            return generation
        except (DamagedError, OSError) as error:
            log.warning("checkpoint passed over: %s", error)
    return None


def read_tensors(directory: Path | str, part: str, field: Field) -> dict[str, Tensor]:
    """The whole tensors of `part` in the newest verified generation under `directory`, by name, on the CPU.

    `param` are the trained weights, `buffer` the buffers of an engine's part; `ema` the averages of an average's part.

    Raises:
        UserError: there is no good generation, or it has no such part.
    """
    generation = newest_verified(directory)
    if generation is None:
        raise UserError(f"{directory}: no checkpoint that is whole; train first")
    return GenerationReader(generation).tensors(part, field)


def encode_index(runs: list[Run]) -> str:
    """The header value that describes `runs`."""
    return json.dumps([[r.part, r.field, r.name, r.shape, r.offset, r.length, r.key, r.start] for r in runs])


def decode_index(text: str) -> Iterator[Run]:
    """The inverse of `encode_index`."""
    for part, field, name, shape, offset, length, key, start in json.loads(text):
        yield Run(part, field, name, tuple(shape), offset, length, key, start)
