"""Takes secrets out of what a run records: credentials in URLs, signed query strings, values named like a secret.

Called by the journal before anything is written, by the shipper before anything is sent, and by every console program
before an error is printed.
"""

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "[redacted]"

_SECRET_NAME = re.compile(
    r"(^|[_.-])(token|secret|password|passwd|passphrase|api_?key|access_?key(_?id)?|private_?key|credentials?)($|[_.-])",
    re.IGNORECASE,
)
_CREDENTIALS = re.compile(r"(?<=://)[^/\s'\"]+(?=@)")
_HEADER = re.compile(r"(?i)\b(?P<scheme>bearer|basic) +(?=\S*[\d=])[\w.~+/=-]{8,}")
_ASSIGNMENT = re.compile(r"(?P<name>[A-Za-z0-9_.-]+)(?P<equals>=)(?P<value>[^\s&;,'\"]+)")
_SIGNATURE_NAMES = {"sig", "signature", "x-amz-signature", "x-amz-credential", "x-goog-signature", "x-goog-credential"}


def redact(value: Any, name: str = "") -> Any:
    """The same tree of mappings, lists and strings with every secret replaced by `[redacted]`.

    A value is a secret when its key has a word such as token, secret, password or api_key in it (`max_tokens` has
    not); inside any string, `user:password@` of a URL and `name=value` with such a name are.
    """
    if isinstance(value, Mapping):
        return {key: redact(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item, name) for item in value]
    if not isinstance(value, str):
        return value
    return HIDDEN if value and _SECRET_NAME.search(_words(name)) else redact_text(value)


def redact_text(text: str) -> str:
    """`text` without credentials of URLs and headers, and without `name=value` pairs that are named like a secret."""
    without_headers = _HEADER.sub(rf"\g<scheme> {HIDDEN}", text)
    return _ASSIGNMENT.sub(_hide_assignment, _CREDENTIALS.sub(HIDDEN, without_headers))


def _hide_assignment(match: re.Match[str]) -> str:
    name = match["name"]
    secret = name.lower() in _SIGNATURE_NAMES or _SECRET_NAME.search(_words(name))
    return f"{name}={HIDDEN}" if secret else match[0]


def _words(name: str) -> str:
    """camelCase as snake_case, so that `authToken` is seen as two words."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
