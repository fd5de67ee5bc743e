"""A real headless Chromium, asked over its pipe (the DevTools protocol), for tests that look at a page."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "headless_shell")
OWN = Path(__file__).parents[2] / ".venv-chromium"
"""Where `make test-report` puts one; its libraries lie beside it."""


def executable() -> str | None:
    """Return the browser of $CHROMIUM, the one of `make test-report`, or the machine's own."""
    own = OWN / "chromium"
    return (
        os.environ.get("CHROMIUM")
        or (str(own) if own.exists() else None)
        or next(filter(None, map(shutil.which, NAMES)), None)
    )


class Page:
    """One page of a browser.

    Attributes:
        complaints: what it wrote to its console as an error or a warning, and exceptions.
    """

    def __init__(self, to: int, of: int) -> None:
        self._to, self._of, self._rest, self._id, self._session = to, of, b"", 0, ""
        self.complaints: list[str] = []

    def open(self, path: Path, width: int, height: int = 900) -> None:
        """Load a file in a window of this size, and wait until it is there."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.resize(width, height)
        self.call("Page.navigate", url=path.resolve().as_uri())
        while self.read().get("method") != "Page.loadEventFired":
            pass

    def resize(self, width: int, height: int = 900) -> None:
        """Give the window another size, in CSS pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def value(self, expression: str) -> Any:
        """Return what an expression of JavaScript comes to."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return the answer to one call."""
        self._id += 1
        message = {"id": self._id, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.read()
            if answer.get("id") == self._id:
                assert "error" not in answer, answer
                found: dict[str, Any] = answer["result"]
                return found

    def read(self) -> dict[str, Any]:
        """Return the next message; what is a complaint is kept."""
        while b"\0" not in self._rest:
            part = os.read(self._of, 1 << 16)
            assert part, "the browser has gone"
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        told = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(told["exceptionDetails"]))
        elif message.get("method") == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.complaints.append(told["entry"]["text"])
        elif message.get("method") == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(told["args"]))
        return message


@contextmanager
def browser(program: str, folder: Path, seconds: int = 60) -> Iterator[Page]:
    """Give a page of a browser whose profile is in ``folder``; it ends with the block, or after ``seconds``."""
    to_read, to = os.pipe()
    of, of_write = os.pipe()
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"]
    command = [program, *options, f"--user-data-dir={folder}"]
    libraries = os.pathsep.join(filter(None, [str(OWN / "al2023" / "lib"), os.environ.get("LD_LIBRARY_PATH", "")]))
    # the browser reads from descriptor 3 and writes to 4
    shell = ["timeout", str(seconds), "bash", "-c", f'exec "$@" 3<&{to_read} 4>&{of_write}', "bash", *command]
    process = subprocess.Popen(
        shell, pass_fds=(to_read, of_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "LD_LIBRARY_PATH": libraries},
    )  # fmt: skip
    os.close(to_read)
    os.close(of_write)
    try:
        yield Page(to, of)
    finally:
        process.terminate()
        process.wait()
        os.close(to)
        os.close(of)
