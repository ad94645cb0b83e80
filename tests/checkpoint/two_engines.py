"""What the tests of changed topologies save and restore: two engines and an average, as a stage has them."""

from pathlib import Path

from torch import Tensor

from pipeline.checkpoint.store import CheckpointStore
from pipeline.distributed.ema import Ema, EmaConfig
from pipeline.distributed.process import Process
from tests.distributed.toys import assemble, make_engine


class TwoEngines:
    """The parts of a run on one topology, with their store."""

    def __init__(self, variant: str, process: Process, folder: Path) -> None:
        self.process = process
        self.engines = [make_engine(variant, process, seed) for seed in (0, 1)]
        self.ema = Ema(self.engines[0], EmaConfig(decay=0.9))
        self.parts = {"first": self.engines[0], "second": self.engines[1], "first_ema": self.ema}
        self.store = CheckpointStore(folder, process)

    def state(self) -> dict[str, Tensor]:
        """Every weight, moment, buffer and average, whole."""
        return {f"{name}/{key}": value for name, part in self.parts.items() for key, value in assemble(part).items()}
