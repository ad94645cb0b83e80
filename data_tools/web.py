"""Pictures from the open web: retries, time limits, few connections to each host, and owners' wishes respected.

Called by `data_tools.fetch`, in the threads of the shard writers.
"""

import time
from functools import lru_cache

import urllib3
from pydantic import Field
from urllib3.exceptions import HTTPError, LocationParseError

from pipeline import __version__
from pipeline.config import Config

AGENT = "tessera-data"
"""Our name in `User-Agent`, and in `X-Robots-Tag` headers that speak to one agent."""

OPT_OUT = {"noai", "noimageai", "noindex", "noimageindex"}
"""Directives of `X-Robots-Tag` by which an owner says no, as img2dataset reads them."""

MAX_BYTES = 256 << 20
PIECE_BYTES = 1 << 18
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
"""HTTP status codes after which another attempt may succeed."""

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0
NUM_HOSTS = 256
"""Hosts whose connections stay open; those used longest ago are closed."""


class WebConfig(Config):
    """How pictures come over a network; none of it changes the bytes of a shard."""

    num_threads: int = Field(default=32, gt=0, le=1024)
    """Pictures under way at once in one worker."""
    num_retries: int = Field(default=2, ge=0)
    """Further attempts after a failure that may pass."""
    timeout_seconds: float = Field(default=20.0, gt=0)
    """For the connection, for each pause in the answer, and three times that for the whole picture."""
    connections_per_host: int = Field(default=16, gt=0)
    """Connections to one host at once, over all workers of this command (at least one each)."""


class OptedOut(OSError):
    """The owner of the picture does not want it used."""


def is_web(url: str) -> bool:
    """True for http and https."""
    return url.startswith(("http://", "https://"))


def download(url: str, config: WebConfig) -> bytes:
    """The body of the answer.

    Raises:
        OptedOut: the answer's headers say no.
        OSError: no answer, an error, a cut-off or too large one; the message has no address in it, to be counted.
    """
    for attempt in range(config.num_retries + 1):
        try:
            return _attempt(url, config)
        except _Passing as error:
            if attempt == config.num_retries:
                raise OSError(str(error)) from None
            time.sleep(error.pause_seconds or FIRST_PAUSE_SECONDS * 2**attempt)
    raise AssertionError("the last attempt returns or raises")


class _Passing(Exception):
    """A failure that another attempt may not meet."""

    def __init__(self, reason: str, pause_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.pause_seconds = pause_seconds


def _attempt(url: str, config: WebConfig) -> bytes:
    pool = _pool(config)
    headers = {"User-Agent": f"{AGENT}/{__version__}", "Accept": "image/*,*/*;q=0.5"}
    try:
        answer = pool.request("GET", url, headers=headers, preload_content=False, timeout=config.timeout_seconds)
    except LocationParseError:
        raise OSError("not a URL") from None
    except HTTPError as error:
        raise _Passing(_reason(error)) from None
    try:
        return _body(answer, time.monotonic() + 3 * config.timeout_seconds)
    except HTTPError as error:
        answer.close()  # what is left of a broken answer must not be read as the next one
        raise _Passing(_reason(error)) from None
    finally:
        answer.release_conn()


def _body(answer: urllib3.BaseHTTPResponse, deadline: float) -> bytes:
    """The whole body, unless status, headers, size or time are against it."""
    if answer.status != 200:
        answer.drain_conn()
        if answer.status in TRANSIENT:
            raise _Passing(f"HTTP {answer.status}", _retry_after(answer.headers.get("Retry-After")))
        raise OSError(f"HTTP {answer.status}")
    if refusal := opt_out(answer.headers.getlist("X-Robots-Tag"), answer.headers.get("tdm-reservation")):
        answer.close()
        raise OptedOut(f"opted out: {refusal}")
    pieces, num_bytes = [], 0
    while piece := answer.read1(PIECE_BYTES):  # what is there by now, so that the clock is looked at after each packet
        pieces.append(piece)
        num_bytes += len(piece)
        if num_bytes > MAX_BYTES:
            answer.close()
            raise OSError("file too large")
        if time.monotonic() > deadline:
            answer.close()
            raise _Passing("timed out")
    return b"".join(pieces)


def opt_out(robots: list[str], tdm_reservation: str | None) -> str | None:
    """The directive by which an answer's headers refuse use, if any; `agent: directive` counts when it is ours."""
    if tdm_reservation is not None and tdm_reservation.strip() == "1":
        return "tdm-reservation"
    for line in robots:
        agent, colon, rest = line.partition(":")
        if colon and agent.strip().lower() != AGENT:
            continue
        words = {word.strip().lower() for word in (rest if colon else line).split(",")}
        if refused := sorted(words & OPT_OUT):
            return refused[0]
    return None


@lru_cache(maxsize=4)
def _pool(config: WebConfig) -> urllib3.PoolManager:
    """One for each process: connections stay open, and a host has no more than its share."""
    retries = urllib3.Retry(total=None, connect=0, read=0, other=0, redirect=5, status=0)
    return urllib3.PoolManager(NUM_HOSTS, retries=retries, maxsize=config.connections_per_host, block=True)


def _retry_after(value: str | None) -> float | None:
    """Seconds that a server asks to wait, within bounds."""
    return min(float(value), LONGEST_PAUSE_SECONDS) if value and value.strip().isdigit() else None


def _reason(error: HTTPError) -> str:
    """The failure without address and numbers."""
    cause = getattr(error, "reason", None) or error
    name = type(cause).__name__
    known = {
        "NewConnectionError": "connection refused",
        "NameResolutionError": "no such host",
        "ConnectTimeoutError": "timed out",
        "ReadTimeoutError": "timed out",
        "IncompleteRead": "answer cut off",
        "ProtocolError": "answer cut off",
        "SSLError": "no secure connection",
        "ResponseError": "too many redirects",
    }
    return known.get(name, name)
