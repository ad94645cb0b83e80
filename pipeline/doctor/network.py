"""How ranks find each other: ports, the loopback, the name of this machine. Called by `examine`."""

import socket

from pipeline.doctor.finding import Finding, Status, first_line


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
