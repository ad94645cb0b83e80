"""Headless Chromium, driven over its debugging pipe: a page is opened, waited for, read and photographed."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

WINDOW = (1760, 900)


class Browser:
    """One window. Commands and answers are NUL-ended JSON on two pipes, which Chromium has as 3 and 4."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        if program is None:
            pytest.skip("no Chromium here; apt install chromium")
        read_commands, self._commands = os.pipe()
        self._answers, write_answers = os.pipe()
        words = [
            "--headless=new",
            "--remote-debugging-pipe",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
        ]
        words += [f"--user-data-dir={folder}", f"--window-size={WINDOW[0]},{WINDOW[1]}", "about:blank"]
        # The shell puts the pipes where Chromium looks for them, whatever their numbers here.
        line = f'exec "$0" "$@" 3<&{read_commands} 4>&{write_answers}'
        with (folder / "chromium.log").open("wb") as log:
            self.process = subprocess.Popen(
                ["bash", "-c", line, program, *words],
                pass_fds=(read_commands, write_answers),
                stdout=log,
                stderr=log,
            )
        os.close(read_commands)
        os.close(write_answers)
        self._number, self._rest, self._session = 0, b"", ""
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        size = {"width": WINDOW[0], "height": WINDOW[1], "deviceScaleFactor": 1, "mobile": False}
        self._ask("Emulation.setDeviceMetricsOverride", **size)

    def open(self, url: str, until: str, seconds: float = 60) -> None:
        """Go to `url` and wait until the JavaScript expression `until` is true there."""
        self._ask("Page.navigate", url="about:blank")  # a change behind the # alone would not load the page anew
        self._ask("Page.navigate", url=url)
        self.wait(until, seconds)

    def wait(self, until: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while self.evaluate(f"Boolean({until})") is not True:
            assert time.monotonic() < deadline, f"not true: {until}; the page says: {self.text()[:2000]}"
            time.sleep(0.2)

    def evaluate(self, expression: str) -> Any:
        return self._ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """A key of the keyboard, for what has the focus."""
        for kind in ("keyDown", "keyUp"):
            self._ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def text(self) -> str:
        """What a reader sees."""
        return str(self.evaluate("document.body ? document.body.innerText : ''"))

    def photograph(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._ask("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._commands)
        os.close(self._answers)

    def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "result" in answer, answer
                return dict(answer["result"])

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            data = os.read(self._answers, 1 << 20)
            assert data, "Chromium ended"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(line))


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    folder.mkdir(parents=True, exist_ok=True)
    window = Browser(folder)
    try:
        yield window
    finally:
        window.close()
