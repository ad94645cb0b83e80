"""The high-water mark of a process' memory, begun anew when wanted; Linux alone tells it. Called by the races."""

from pathlib import Path


def forget_peak() -> float:
    """Begin the high-water mark anew, so that the imports' is gone; what the process has now, in MiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status_mib("VmRSS")


def peak() -> float:
    """The most that the process has had since, in MiB."""
    return _status_mib("VmHWM")


def _status_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024
