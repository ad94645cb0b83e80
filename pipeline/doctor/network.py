"""How ranks find each other: ports, the loopback, a collective, the name of this machine. Called by `examine`."""

import multiprocessing
import os
import socket
import time
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path

from pipeline.doctor.finding import Finding, Status, first_line

EPHEMERAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
LAUNCHER_PORTS = (15000, 29999)
"""Where the launcher lets the ranks of a job meet."""
COLLECTIVE_SECONDS = 30.0


def check_loopback() -> Finding:
    """A free port on the loopback, and a connection to it: what ranks on one machine meet through."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError as error:
        remedy = "allow connections on 127.0.0.1, and look for exhausted ports with ss -s"
        return Finding("loopback", Status.FAILURE, first_line(error), remedy)
    return Finding("loopback", Status.OK, f"connected on port {port}")


def check_host_name() -> Finding:
    """The name under which other machines are told to find this one."""
    name = socket.gethostname()
    try:
        address = socket.getaddrinfo(name, None)[0][4][0]
    except OSError:
        remedy = "add it to DNS or /etc/hosts before training on several machines"
        return Finding("host name", Status.WARNING, f"{name} has no address", remedy)
    return Finding("host name", Status.OK, f"{name} is {address}")


def check_ports(ephemeral: Path) -> Finding:
    """The launcher's ports against those that the kernel hands out to anybody's connections."""
    low, high = LAUNCHER_PORTS
    try:
        begin, end = (int(word) for word in ephemeral.read_text().split())
    except (OSError, ValueError):
        return Finding("ports", Status.OK, f"{low} to {high} are the launcher's; this system does not tell its own")
    found = f"{low} to {high} are the launcher's, {begin} to {end} the kernel's"
    if begin <= high and end >= low:
        remedy = f"sysctl -w net.ipv4.ip_local_port_range='32768 60999': a job may else meet a port in use, {found}"
        return Finding("ports", Status.WARNING, found, remedy)
    return Finding("ports", Status.OK, found)


def check_collective() -> Finding:
    """Two processes that add two numbers over gloo, as the ranks of a run do on the CPU."""
    context = multiprocessing.get_context("spawn")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    pipes = [context.Pipe(duplex=False) for _ in range(2)]
    ranks = [context.Process(target=_add, args=(r, port, sender), daemon=True) for r, (_, sender) in enumerate(pipes)]
    for rank in ranks:
        rank.start()
    deadline = time.monotonic() + COLLECTIVE_SECONDS
    said = [receiver.recv() for receiver, _ in pipes if receiver.poll(max(deadline - time.monotonic(), 0.0))]
    for rank in ranks:
        rank.kill()
    if said == ["3", "3"]:
        return Finding("collective", Status.OK, "two ranks added over gloo")
    what = "; ".join(said) or f"two ranks did not meet in {COLLECTIVE_SECONDS:.0f} s"
    remedy = "GLOO_SOCKET_IFNAME names the interface to use; look for a firewall on the loopback"
    return Finding("collective", Status.FAILURE, what, remedy)


def _add(rank: int, port: int, sender: Connection) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        import torch
        import torch.distributed as dist

        place = f"tcp://127.0.0.1:{port}"
        limit = timedelta(seconds=COLLECTIVE_SECONDS / 2)
        dist.init_process_group("gloo", init_method=place, rank=rank, world_size=2, timeout=limit)
        total = torch.tensor(rank + 1)
        dist.all_reduce(total)
        sender.send(str(int(total)))
        dist.destroy_process_group()
    except Exception as error:  # whatever it is, it is the finding
        sender.send(first_line(error))
