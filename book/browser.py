"""A headless Chromium, for what opens the built pages: `make check-book` and `make pdf`."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

BROWSERS = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"]
OFF = ["gpu", "quic", "background-networking", "component-update", "sync", "extensions"]
QUIET = [
    "--headless",
    "--no-sandbox",
    "--no-first-run",
    "--hide-scrollbars",
    *(f"--disable-{o}" for o in OFF),
]
QUIET += ["--remote-debugging-port=0", "--remote-allow-origins=*"]


class Missing(RuntimeError):
    """There is no Chromium, or no book to open in it; the message says which, in one sentence."""


def chromium(html: Path) -> str:
    """The Chromium to open the book at `html` with. Raises Missing where either is not there."""
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        raise Missing("No Chromium was found: install chromium or google-chrome, or name one in CHROMIUM.")
    if not (html / "index.html").exists():
        raise Missing(f"No book at {html}: make book builds it.")
    return program


class Browser:
    """One tab of a headless Chromium, driven through its DevTools protocol."""

    def __init__(self, program: str) -> None:
        import websocket  # websocket-client

        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        command = [program, *QUIET, f"--user-data-dir={self.profile.name}", "about:blank"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port = Path(self.profile.name, "DevToolsActivePort")
        for _ in range(300):
            if port.exists() and port.read_text().strip():
                break
            if self.process.poll() is not None:
                raise RuntimeError(f"{program} did not start: exit status {self.process.returncode}")
            time.sleep(0.1)
        address = f"http://127.0.0.1:{port.read_text().split()[0]}/json"
        tabs = json.load(urlopen(address))
        tab = next(t for t in tabs if t["type"] == "page")
        self.socket = websocket.create_connection(tab["webSocketDebuggerUrl"], timeout=600)
        self.events: list[dict[str, Any]] = []
        self.count = 0
        for domain in ["Page", "Runtime", "Network", "Log"]:
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its result; events that come first are kept."""
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": params}))
        while (message := json.loads(self.socket.recv())).get("id") != self.count:
            self.events.append(message)
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']['message']}")
        return message["result"]

    def evaluate(self, script: str) -> Any:
        """The value of a script, awaited; JSON text is decoded."""
        done = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in done:
            raise RuntimeError(str(done["exceptionDetails"].get("exception", {}).get("description")))
        value = done["result"].get("value")
        return json.loads(value) if isinstance(value, str) and value[:1] in "[{" else value

    def resize(self, width: int, height: int = 1000) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def open(self, url: str) -> None:
        """Load a page at 1440 pixels, in light, and wait until nothing of it is outstanding."""
        self.resize(1440)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
        self.events = []
        self.call("Page.navigate", url=url)
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            self.events.append(json.loads(self.socket.recv()))

    def screenshot(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def pdf(self, file: Path) -> None:
        """The page as its style prints it, with an outline of its headings."""
        options = {"preferCSSPageSize": True, "printBackground": True, "transferMode": "ReturnAsStream"}
        made = self.call("Page.printToPDF", **options, generateTaggedPDF=True, generateDocumentOutline=True)
        with file.open("wb") as out:
            part: dict[str, Any] = {"eof": False}
            while not part["eof"]:
                part = self.call("IO.read", handle=made["stream"], size=1 << 20)
                out.write(base64.b64decode(part["data"]))

    def close(self) -> None:
        self.socket.close()
        self.process.terminate()
        self.process.wait()
        self.profile.cleanup()
