"""A real S3 server on loopback: OpenStack Swift with its S3 face, one copy of everything, keys that are checked.

`start` returns when signed requests are answered; `S3Server.stop` ends the processes that it started and no others.
"""

import base64
import ctypes
import email.utils
import getpass
import hashlib
import hmac
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

KEY, SECRET = "test:tester", "testing"
SERVERS = ("account", "container", "object", "proxy")
FILTERS = ("catch_errors", "gatekeeper", "healthcheck", "listing_formats", "copy", "dlo", "symlink")

COMMON = """[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
swift_dir = {folder}
devices = {folder}/srv
mount_check = false
user = {user}
workers = 0
log_level = WARNING
disable_fallocate = true
fallocate_reserve = 0
recon_cache_path = {folder}/cache
log_address = /nonexistent
"""
BACKEND = """[pipeline:main]
pipeline = healthcheck {name}-server
[filter:healthcheck]
use = egg:swift#healthcheck
[app:{name}-server]
use = egg:swift#{name}
"""
PROXY = """[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck listing_formats s3api tempauth copy slo dlo symlink proxy-server
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
s3_acl = false
max_upload_part_num = 10000
[filter:tempauth]
use = egg:swift#tempauth
user_{account}_{user} = {secret} .admin
[filter:slo]
use = egg:swift#slo
max_manifest_segments = 10000
max_manifest_size = 33554432
allow_async_delete = false
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
"""
CACHE = """[filter:cache]
use = egg:swift#memcache
memcache_servers = {memcached}
"""
SWIFT_CONF = """[swift-hash]
swift_hash_path_suffix = tests
swift_hash_path_prefix = tests
[storage-policy:0]
name = one
default = yes
[swift-constraints]
max_meta_value_length = 2048
"""
RINGS = """
import json, sys
from swift.common.ring import RingBuilder
folder, ports = sys.argv[1], json.loads(sys.argv[2])
for name in ("account", "container", "object"):
    builder = RingBuilder(3, 1, 1)  # 8 partitions, 1 copy
    place = dict(ip="127.0.0.1", port=ports[name], replication_ip="127.0.0.1", replication_port=ports[name])
    builder.add_dev(dict(id=0, region=1, zone=1, device="d1", weight=1.0, meta="", **place))
    builder.rebalance(seed=1)
    builder.get_ring().save(f"{folder}/{name}.ring.gz")
"""
RUN = """
import os, sys
from swift.common import utils
utils.SWIFT_CONF_FILE = os.path.dirname(sys.argv[1]) + "/swift.conf"  # read before the constraints; not /etc/swift
from swift.common.wsgi import run_wsgi
sys.exit(run_wsgi(sys.argv[1], sys.argv[2], verbose=True))
"""


@dataclass
class S3Server:
    """A running server."""

    folder: Path
    ports: dict[str, int]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.ports['proxy']}"

    def environment(self) -> dict[str, str]:
        """What clients need to find it."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def launch(self) -> None:
        """Start all servers on their ports and wait until a signed request is answered."""
        for name in SERVERS:
            log = (self.folder / f"{name}.log").open("ab")
            command = [sys.executable, "-c", RUN, str(self.folder / f"{name}-server.conf"), f"{name}-server"]
            self.processes[name] = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=_end_with_the_test,
            )
            log.close()
        deadline, last = time.monotonic() + 60, None
        while time.monotonic() < deadline:
            for name, process in self.processes.items():
                if process.poll() is not None:
                    raise RuntimeError(f"{name} died: {(self.folder / f'{name}.log').read_text()[-2000:]}")
            try:
                for name in SERVERS[:-1]:
                    urllib.request.urlopen(f"http://127.0.0.1:{self.ports[name]}/healthcheck", timeout=5).close()
                urllib.request.urlopen(_signed(f"{self.endpoint}/"), timeout=10).close()
                return
            except OSError as error:
                last = error
                time.sleep(0.05)
        raise RuntimeError(f"the S3 server does not answer: {last!r}")

    def stop(self, how: int = signal.SIGTERM) -> None:
        """End the processes; SIGKILL as a power cut does."""
        for process in self.processes.values():
            process.send_signal(how)
        for process in self.processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()


def start(folder: Path, memcached: str | None = None) -> S3Server:
    """A server with its data under `folder`.

    Args:
        memcached: host and port of one, in which it remembers accounts and containers, as installed ones do.

    Raises:
        OSError: the folder's disk has no extended attributes, in which Swift keeps what it knows.
    """
    (folder / "srv/d1").mkdir(parents=True)
    (folder / "cache").mkdir()
    os.setxattr(folder / "srv", "user.swift.probe", b"x" * 2000)
    ports = dict(zip(SERVERS, _free_ports(len(SERVERS)), strict=True))
    (folder / "swift.conf").write_text(SWIFT_CONF)
    account, _, user = KEY.partition(":")
    for name in SERVERS:
        own = BACKEND.format(name=name)
        if name == "proxy":
            simple = "".join(f"[filter:{kind}]\nuse = egg:swift#{kind}\n" for kind in FILTERS)
            own = PROXY.format(account=account, user=user, secret=SECRET) + simple
            if memcached is not None:
                own = own.replace("healthcheck ", "healthcheck cache ", 1) + CACHE.format(memcached=memcached)
        common = COMMON.format(port=ports[name], folder=folder, user=getpass.getuser())
        (folder / f"{name}-server.conf").write_text(common + own)
    subprocess.run([sys.executable, "-c", RINGS, str(folder), json.dumps(ports)], check=True)
    server = S3Server(folder, ports)
    try:
        server.launch()
    except BaseException:
        server.stop(signal.SIGKILL)
        raise
    return server


def _end_with_the_test() -> None:
    """Linux ends a server whose test was killed before it could stop it (PR_SET_PDEATHSIG is 1)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _signed(url: str) -> urllib.request.Request:
    """A list of all buckets, with the old short signature."""
    date = email.utils.formatdate(usegmt=True)
    digest = hmac.new(SECRET.encode(), f"GET\n\n\n{date}\n/".encode(), hashlib.sha1).digest()
    headers = {"Date": date, "Authorization": f"AWS {KEY}:{base64.b64encode(digest).decode()}"}
    return urllib.request.Request(url, headers=headers)
