"""All checks of the preflight in the order in which a run would meet the trouble. Called by `tessera doctor`."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.doctor.disk import check_clock, check_disk, check_rights
from pipeline.doctor.finding import Finding
from pipeline.doctor.machine import (
    PYTHONS,
    SHM,
    check_compilers,
    check_device,
    check_shared_memory,
    check_torch,
    check_version,
)
from pipeline.doctor.network import EPHEMERAL_PORTS, check_collective, check_host_name, check_loopback, check_ports
from pipeline.doctor.services import check_data, check_tracking

if TYPE_CHECKING:  # torch comes with it, and a torch that does not import is one of the findings
    from pipeline.data.dataset import DataConfig


@dataclass(frozen=True)
class Needs:
    """What a run will use; the checks that need a config are left out without one."""

    run: Path = Path("runs")
    """Where the run writes; it need not exist yet."""
    state_bytes: int | None = None
    """Size of one generation of checkpoints."""
    tracking_uri: str | None = None
    """As in the config."""
    data: "Sequence[DataConfig]" = ()
    """What the run reads, in each of its phases."""
    mirror: str | None = None
    """Where its checkpoints are copied to."""


def examine(needs: Needs) -> Iterator[Finding]:
    """All checks, in the order in which a run would meet the trouble."""
    yield check_version("Python", sys.version_info[:2], PYTHONS)
    yield check_torch()
    yield check_device()
    yield check_compilers()
    yield check_shared_memory(SHM)
    yield check_loopback()
    yield check_ports(EPHEMERAL_PORTS)
    yield check_collective()
    yield check_host_name()
    yield check_clock(needs.run)
    yield check_disk(needs.run, needs.state_bytes)
    if needs.mirror is not None:
        yield check_rights(needs.mirror)
    yield check_tracking(needs.tracking_uri)
    for data in needs.data:
        for url in data.urls:
            yield check_data(url, data)
