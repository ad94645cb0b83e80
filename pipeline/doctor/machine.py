"""The machine itself: versions, device, compilers, shared memory. Called by `examine`."""

import glob
import os
import shutil
from pathlib import Path

from pipeline.doctor.finding import Finding, Status, first_line, gib

SHM = Path("/dev/shm")
SHM_LEFTOVERS = "deepspeed_allreduce_buffer_*"
MIN_SHM_BYTES = 256 << 20
PYTHONS, TORCHES = ((3, 11), (3, 13)), ((2, 11), (2, 13))


def check_version(name: str, have: tuple[int, ...], supported: tuple[tuple[int, int], tuple[int, int]]) -> Finding:
    """The first two numbers of a version against the inclusive range that the tests cover."""
    low, high = (".".join(map(str, version)) for version in supported)
    found = ".".join(map(str, have))
    if have[:2] < supported[0]:
        return Finding(name, Status.FAILURE, found, f"install {name} {low} to {high}")
    if have[:2] > supported[1]:
        return Finding(name, Status.WARNING, found, f"tested with {low} to {high}; make test tells whether it works")
    return Finding(name, Status.OK, found)


def check_torch() -> Finding:
    """torch imports, and its version is one that the tests cover."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return Finding("torch", Status.FAILURE, first_line(error), "make venv, or pip install for this CUDA version")
    major, minor = torch.__version__.split(".")[:2]
    finding = check_version("torch", (int(major), int(minor)), TORCHES)
    return Finding(finding.check, finding.status, torch.__version__, finding.remedy)


def check_device() -> Finding:
    """The GPUs that torch sees, or the CPU."""
    import torch

    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi"):
            remedy = "this torch was built without CUDA, or for a newer driver: pip install another build of it"
            return Finding("device", Status.WARNING, "nvidia-smi is here, but torch sees no GPU", remedy)
        return Finding("device", Status.OK, f"no GPU; {os.cpu_count()} CPU cores")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if not torch.cuda.is_bf16_supported():
        return Finding("device", Status.WARNING, ", ".join(names), "no bf16: train with engine.precision=fp32")
    return Finding("device", Status.OK, ", ".join(names))


def check_shared_memory(folder: Path) -> Finding:
    """Room for ranks to exchange data, and nothing left there by ranks that were killed."""
    if not folder.is_dir():
        return Finding("shared memory", Status.WARNING, f"no {folder}", "mount it: several ranks exchange data there")
    left = [Path(path) for path in glob.glob(str(folder / SHM_LEFTOVERS))]
    size, free = shutil.disk_usage(folder).total, shutil.disk_usage(folder).free
    found = f"{gib(free)} of {gib(size)} free"
    if left:
        held = sum(path.stat().st_size for path in left)
        remedy = f"when no training runs here: rm {folder / SHM_LEFTOVERS}"
        return Finding("shared memory", Status.WARNING, f"{found}; {len(left)} leftovers hold {gib(held)}", remedy)
    if free < MIN_SHM_BYTES:
        return Finding("shared memory", Status.WARNING, found, "start the container with --shm-size=8g or --ipc=host")
    return Finding("shared memory", Status.OK, found)


def check_compilers(names: tuple[str, ...] = ("g++", "ninja")) -> Finding:
    """What torch.compile and DeepSpeed's own kernels are built with; a plain run needs neither."""
    absent = [name for name in names if shutil.which(name) is None]
    if absent:
        remedy = "apt-get install build-essential ninja-build, if you compile"
        return Finding("compilers", Status.WARNING, f"no {', '.join(absent)}: a plain run needs none", remedy)
    return Finding("compilers", Status.OK, ", ".join(names))
