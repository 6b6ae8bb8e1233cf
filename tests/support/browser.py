"""A headless Chromium, driven through its debugging pipe: real mouse, real keys, and what the console says."""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# Chromium reads commands from file 3 and writes answers to file 4.
_START = (
    "import os, sys; r, w = (os.dup(int(f)) for f in sys.argv[1:3]); os.dup2(r, 3); os.dup2(w, 4);"
    "[os.set_inheritable(f, True) for f in (3, 4)];"
    "os.execv(sys.argv[3], sys.argv[3:])"
)
_KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowRight": 39}


class Browser:
    """One page in one browser.

    Attributes:
        said: errors and warnings of the console, and exceptions.
        requested: addresses that were loaded.
    """

    def __init__(self) -> None:
        assert CHROMIUM is not None
        self.said: list[str] = []
        self.requested: list[str] = []
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                   "--remote-debugging-pipe", f"--user-data-dir={self._folder.name}"]  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, str(theirs_in), str(theirs_out), CHROMIUM, *options],
            pass_fds=(theirs_in, theirs_out),
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._read, self._write = os.fdopen(ours_in, "rb"), os.fdopen(ours_out, "wb")
        self._left, self._last, self._session = b"", 0, None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self._write.close()
        self._read.close()
        self._process.terminate()
        self._process.wait()
        self._folder.cleanup()

    def call(self, method: str, **params: Any) -> Any:
        """Send a command and wait for its answer."""
        self._last += 1
        command = {"id": self._last, "method": method, "params": params}
        if self._session is not None:
            command["sessionId"] = self._session
        self._write.write(json.dumps(command).encode() + b"\0")
        self._write.flush()
        while True:
            message = self._next()
            if message.get("id") == self._last:
                assert "error" not in message, message
                return message["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            more = os.read(self._read.fileno(), 2**16)
            assert more, "the browser is gone"
            self._left += more
        first, _, self._left = self._left.partition(b"\0")
        message = json.loads(first)
        what, params = message.get("method"), message.get("params", {})
        if what == "Runtime.exceptionThrown":
            self.said.append(params["exceptionDetails"]["text"])
        if what == "Runtime.consoleAPICalled":
            self.said.append(str(params["args"]))
        if what == "Log.entryAdded":
            self.said.append(params["entry"]["text"])
        if what == "Network.requestWillBeSent":
            self.requested.append(params["request"]["url"])
        return message

    def open(self, path: Path, *, width: int = 1100, height: int = 800, dark: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=path.as_uri())
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def value(self, expression: str) -> Any:
        """Of a JavaScript expression, when it is there if it is a promise."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def point(self, selector: str) -> None:
        """Move the mouse to the middle of an element."""
        place = f"document.querySelector({json.dumps(selector)}).getClientRects()[0]"
        x, y, width, height = self.value(f"(({{x, y, width, height}}) => [x, y, width, height])({place})")
        self.move(x + width / 2, y + height / 2)

    def move(self, x: float, y: float) -> None:
        self._at = (x, y)
        for near in (x - 1, x):  # the first event of a page has moved from nowhere
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=near, y=y)

    def click(self, selector: str) -> None:
        self.point(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call(
                "Input.dispatchMouseEvent",
                type=kind,
                x=self._at[0],
                y=self._at[1],
                button="left",
                clickCount=1,
            )

    def press(self, key: str) -> None:
        for kind in ("rawKeyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=_KEYS[key]
            )

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        data = self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))
