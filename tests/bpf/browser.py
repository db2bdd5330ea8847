"""A headless Chromium, driven through chromedriver (W3C WebDriver)."""

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bpf.daemon import wait_for

PORT = 9515
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


class Browser:
    """One session."""

    def __init__(self, directory: Path) -> None:
        options = {"args": [*ARGUMENTS, f"--user-data-dir={directory}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self._session = "session"
        made = self._ask("", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"session/{made['sessionId']}"

    def _ask(self, path: str, data: Any, method: str = "POST") -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{PORT}/{self._session}{path}",
            data=json.dumps(data).encode() if data is not None else None,
            method=method,
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, url: str, width: int, *, dark: bool = False) -> None:
        """Shows a page to a screen of that width."""
        self._command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._command("Emulation.setEmulatedMedia", features=[scheme])
        self._ask("/url", {"url": url})

    def _command(self, name: str, **parameters: Any) -> None:
        self._ask("/goog/cdp/execute", {"cmd": name, "params": parameters})

    def tell(self, expression: str) -> Any:
        """What a JavaScript expression is on the page."""
        return self._ask("/execute/sync", {"script": f"return {expression}", "args": []})

    def complaints(self) -> list[str]:
        """What pages of the server had written to the console, a missing icon aside."""
        found = [one["message"] for one in self._ask("/se/log", {"type": "browser"})]
        return [one for one in found if one.startswith("http") and "favicon" not in one]

    def close(self) -> None:
        """Ends the session, and Chromium."""
        self._ask("", None, "DELETE")


@contextmanager
def browser(directory: Path) -> Iterator[Browser]:
    """A browser of this network namespace."""
    with (directory / "log").open("w") as log:
        driver = subprocess.Popen(["chromedriver", f"--port={PORT}"], stdout=log, stderr=log)

    def listens() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/status", timeout=5):
                return True
        except OSError:
            return False

    try:
        wait_for(listens, "chromedriver")
        one = Browser(directory / "profile")
        try:
            yield one
        finally:
            one.close()
    finally:
        driver.terminate()
        driver.wait(30)
