"""A page served by a process of its own, and a real browser to use it: chromium, without a window.

Needs chromium and its driver (Debian: apt-get install chromium chromium-driver) and selenium. The server refuses every
connection to another machine and notes it; so does the browser's own log of requests.
"""

import base64
import io
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
MISSING = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
HERE = ("127.0.0.1", "localhost", "::1")

GUARDED = """
import runpy, socket, sys
connect = socket.socket.connect
def guarded(self, address):
    if isinstance(address, tuple) and address[0] not in HERE:
        print("REFUSED", address, flush=True)
        raise OSError("no other machine")
    return connect(self, address)
resolve = socket.getaddrinfo
def resolved(host, *rest, **options):
    if host not in (*HERE, None):
        print("REFUSED", host, flush=True)
        raise OSError("no other machine")
    return resolve(host, *rest, **options)
socket.socket.connect, socket.getaddrinfo = guarded, resolved
sys.argv = ["page", *sys.argv[1:]]
runpy.run_module("unclip.page", run_name="__main__")
""".replace("HERE", repr(HERE))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def served(log: Path, *arguments: str) -> Iterator[str]:
    """The page's address, while it is served; what it prints goes to a file."""
    port = free_port()
    with log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, "-c", GUARDED, "--port", str(port), "--device", "cpu", *arguments],
            cwd=ROOT, stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        for _ in range(600):
            time.sleep(0.1)
            assert server.poll() is None, log.read_text()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=20)


class Browser:
    """Chromium at a page, used as a visitor would: by what is written on it."""

    def __init__(self, width: int = 1280, height: int = 900):
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        quiet = "--disable-background-networking --disable-component-update --no-first-run"
        for argument in f"--headless=new --no-sandbox --disable-dev-shm-usage {quiet}".split():
            options.add_argument(argument)
        options.add_argument(f"--window-size={width},{height}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
        self.driver = webdriver.Chrome(options=options, service=service)
        self.driver.set_script_timeout(30)

    def close(self) -> None:
        self.driver.quit()

    def open(self, address: str) -> None:
        self.driver.get(address)
        self.wait("return [...document.querySelectorAll('textarea')].some(t => t.value)")

    def wait(self, script: str, seconds: float = 20, *arguments):
        """What a script returns, once it is not nothing."""
        until = time.monotonic() + seconds
        while not (found := self.driver.execute_script(script, *arguments)):
            assert time.monotonic() < until, f"waited {seconds} s for: {script}"
            time.sleep(0.03)
        return found

    def tab(self, name: str) -> None:
        self.driver.execute_script(TAB, name)
        self.wait("return [...document.querySelectorAll('[role=tab][aria-selected=true]')].some("
                  "t => t.textContent.trim() == arguments[0])", 5, name)  # fmt: skip

    def element(self, label: str):
        """The visible input with a label."""
        return self.wait(LABELLED, 10, label)

    def fill(self, label: str, text: str) -> None:
        from selenium.webdriver.common.keys import Keys

        field = self.element(label)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(Keys.DELETE)
        field.send_keys(text, Keys.TAB)

    def press(self, name: str) -> None:
        self.wait(BUTTON, 10, name).click()

    def pictures(self) -> list[np.ndarray]:
        """The pictures that the visible results show, uint8 (H, W, channels)."""
        found = self.driver.execute_script(PICTURES)
        return [np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))) for url in found]

    def results(self, count: int, seconds: float = 30) -> list[np.ndarray]:
        """The pictures, once there are as many finished ones (each is a link)."""
        self.wait(f"return [...document.querySelectorAll('.unclip figure a img')].filter({VISIBLE}).length >= {count}",
                  seconds)  # fmt: skip
        return self.pictures()

    def problem(self) -> str:
        """The one line that says what is wrong, once it is there."""
        return self.wait(
            f"return [...document.querySelectorAll('.problem')].filter({VISIBLE}).map(p => p.innerText)[0]"
        )

    def hosts(self) -> set[str]:
        """Of all that was requested so far."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return {urlparse(url).hostname for url in urls if urlparse(url).scheme not in ("data", "blob", "chrome")}

    def complaints(self) -> list[str]:
        """Errors on the console."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


VISIBLE = "e => e.offsetParent !== null"
TAB = "[...document.querySelectorAll('[role=tab]')].find(t => t.textContent.trim() == arguments[0]).click()"
BUTTON = f"""return [...document.querySelectorAll('button.primary, button.lg')].filter({VISIBLE})
    .find(b => b.textContent.trim() == arguments[0])"""
LABELLED = f"""for (const label of document.querySelectorAll('label, .block')) {{
    const name = label.querySelector('span, label');
    if (!name || name.textContent.trim() != arguments[0]) continue;
    const field = [...label.querySelectorAll('textarea, input')].find({VISIBLE});
    if (field) return field;
}}"""
PICTURES = f"return [...document.querySelectorAll('.unclip figure img')].filter({VISIBLE}).map(i => i.src)"
