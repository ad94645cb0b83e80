"""What memcached is to an installed Swift: it remembers accounts and containers, here in the proxy's own process.

Without it, Swift asks two more servers about every request. A filter of paste's, named in the configuration that
`tests.s3_server` writes for races; the tests go without.
"""

import json
import time as clock
from collections.abc import Callable, Iterable
from typing import Any

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Cache:
    """As much of memcached's client as Swift's proxy uses."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[float, str]] = {}

    def get(self, key: str, **options: Any) -> Any:
        """The value, unless it is too old."""
        end, text = self._held.get(key, (0.0, ""))
        return json.loads(text) if clock.monotonic() < end else None

    def set(self, key: str, value: Any, time: float = 0, **options: Any) -> None:
        """Hold it for `time` seconds."""
        self._held[key] = clock.monotonic() + time, json.dumps(value)

    def delete(self, key: str, **options: Any) -> None:
        """Forget it."""
        self._held.pop(key, None)


def filter_factory(global_config: dict[str, str], **local_config: str) -> Callable[[Application], Application]:
    """For paste."""
    cache = Cache()

    def wrap(application: Application) -> Application:
        def called(env: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
            env["swift.cache"] = cache
            return application(env, start)

        return called

    return wrap
