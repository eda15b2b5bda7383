"""Serve the page in a process of its own, and use it in a real browser: chromium, without a window.

This needs chromium and its driver (Debian: apt-get install chromium chromium-driver) and selenium. The server refuses
and logs every connection to another machine; the browser's log of requests shows those of the browser.
"""

import base64
import http.server
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
NEW_LINE = "\ue008\ue007\ue000"
"""Keys that begin another line of a text: Shift and Enter, then all let go."""
MISSING = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None] + [
    name for name in ("selenium", "gradio") if find_spec(name) is None
]
"""Requirements of the tests that are not installed."""
AXE = "axe-core@4"
"""The npm package that looks for what shuts out people who use a keyboard or a screen reader."""
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


def fetch_axe(folder: Path) -> str:
    """The script of axe-core. Skips the test if npm cannot fetch it."""
    if shutil.which("npm") is None:
        pytest.skip(f"the page is not tested with {AXE}, as npm is not installed")
    packed = subprocess.run(["npm", "pack", AXE, "--silent"], cwd=folder, capture_output=True, text=True)
    if packed.returncode:
        pytest.skip(f"the page is not tested with {AXE}, as npm cannot fetch it")
    with tarfile.open(folder / packed.stdout.strip().splitlines()[-1]) as archive:
        return archive.extractfile("package/axe.min.js").read().decode()


@contextmanager
def served(log: Path, *arguments: str, opening: str = "") -> Iterator[str]:
    """Serve the page, and yield its address; its output goes to a file.

    It computes with one thread, as the tests do, because the number of threads changes how sums are rounded.

    Args:
        opening: Python that the server runs first.
    """
    port = free_port()
    with log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, "-c", opening + GUARDED, "--port", str(port), "--device", "cpu", *arguments],
            cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    try:
        for _ in range(1800):
            time.sleep(0.1)
            assert server.poll() is None, log.read_text()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
        else:
            raise AssertionError(f"the page was not served within three minutes: {log.read_text()}")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=20)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Print nothing."""


@contextmanager
def served_folder(folder: Path) -> Iterator[str]:
    """Serve the files in a folder, as any static host does, and yield the address."""
    handler = partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class Browser:
    """Chromium, used as a visitor would: elements are found by the text on the page."""

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
        """Open the page, and wait until it has drawn what it shows at first."""
        self.driver.get("about:blank")
        self.complaints()  # discard those of the page before
        self.driver.get(address)
        self.wait(f"return {DONE}.length", 90)

    def wait(self, script: str, seconds: float = 20, *arguments):
        """Repeat a script until it returns a value that is true, and return it."""
        until = time.monotonic() + seconds
        while not (result := self.driver.execute_script(script, *arguments)):
            assert time.monotonic() < until, f"waited {seconds} s for: {script}"
            time.sleep(0.03)
        return result

    def tab(self, name: str) -> None:
        """Open a tab; on a narrow screen some are in a menu."""
        if not self.driver.execute_script(TAB, name):
            self.driver.execute_script("document.querySelector('[aria-label=\"More tabs\"]').click()")
            self.wait(TAB, 5, name)
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
        urls = self.driver.execute_script(PICTURES)
        return [np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))) for url in urls]

    def answered(self, act: Callable[[], None], seconds: float = 60) -> list[np.ndarray]:
        """The finished pictures of the open tab, once an act is answered."""
        self.driver.execute_script(f"{DONE}.forEach(a => a.classList.add('old'))")
        act()
        self.wait(f"return {DONE}.some(a => !a.classList.contains('old'))", seconds)
        return self.finished()

    def finished(self) -> list[np.ndarray]:
        """The pictures of the open tab that can be picked."""
        urls = self.driver.execute_script(PICKS)
        return [np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))) for url in urls]

    def show(self, name: str) -> list[np.ndarray]:
        """Open a tab, and wait until it has drawn what it shows at first."""
        self.tab(name)
        self.wait(f"return {DONE}.length", 60)
        return self.finished()

    def status(self) -> str:
        """The line of messages of the open tab."""
        return self.driver.execute_script(
            f"return [...document.querySelectorAll('.status')].filter({VISIBLE})[0]?.innerText ?? ''"
        )

    def problem(self) -> str:
        """The error message, once it is shown."""
        return self.wait(
            f"return [...document.querySelectorAll('.problem')].filter({VISIBLE}).map(p => p.innerText)[0]"
        )

    def timed(self, act: Callable[[], None], script: str) -> float:
        """Seconds from an act until a script returns something."""
        began = time.perf_counter()
        act()
        self.wait(script)
        return time.perf_counter() - began

    def wait_until(self, happened: Callable[[], bool], seconds: float = 30) -> None:
        until = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < until, f"waited {seconds} s"
            time.sleep(0.05)

    def large(self) -> np.ndarray:
        """The picture that the slider shows."""
        return self.pictures()[0]

    def saved(self, selector: str) -> Image.Image:
        """The picture that a visible link of the results saves."""
        url = self.wait(f"return [...document.querySelectorAll(arguments[0])].filter({VISIBLE})[0]?.href", 20,
                        f".unclip {selector}")  # fmt: skip
        return Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))

    def copied(self) -> str:
        """The text that the copy button puts on the clipboard."""
        permissions = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
        self.driver.execute_cdp_cmd("Browser.grantPermissions", permissions)
        for selector in ("summary", ".copy"):
            self.click(selector)
        read = "navigator.clipboard.readText().then(arguments[0], error => arguments[0](String(error)))"
        return self.driver.execute_async_script(read)

    def click(self, selector: str) -> None:
        """Click on a visible element, which may be off screen."""
        found = self.wait(f"return [...document.querySelectorAll(arguments[0])].filter({VISIBLE})[0]", 20, selector)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", found)
        found.click()

    def slide(self, share: float) -> None:
        """Move the slider above some frames, from 0 to 1."""
        self.driver.execute_script(
            f"""const input = [...document.querySelectorAll('.flip input')].filter({VISIBLE})[0];
            input.value = Math.round(arguments[0] * input.max);
            input.dispatchEvent(new Event('input', {{bubbles: true}}));""",
            share,
        )

    def downloaded(self, name: str) -> bytes:
        """The file that a button of the bar saves."""
        script = """const done = arguments[arguments.length - 1], make = URL.createObjectURL;
        URL.createObjectURL = blob => {
            const reader = new FileReader();
            reader.onload = () => done(reader.result);
            reader.readAsDataURL(blob);
            URL.createObjectURL = make;
            return make(blob);
        };
        document.getElementById(arguments[0]).click();"""
        return base64.b64decode(self.driver.execute_async_script(script, name).split(",")[1])

    def is_in_view(self, selector: str) -> bool:
        """Whether a visible element lies on the screen."""
        return self.driver.execute_script(
            f"""const box = [...document.querySelectorAll(arguments[0])].filter({VISIBLE})[0]?.getBoundingClientRect();
            return Boolean(box) && box.top >= 0 && box.top < innerHeight && box.height > 0;""",
            selector,
        )

    def violations(self, axe: str) -> list[str]:
        """Serious findings of axe-core on the page as it is."""
        self.driver.execute_script(axe)
        return self.driver.execute_async_script(
            """const done = arguments[0], grave = ['serious', 'critical'];
            axe.run().then(result => done(result.violations.filter(v => grave.includes(v.impact)).flatMap(
                v => v.nodes.map(n => `${v.id}: ${n.html.slice(0, 200)}`))))"""
        )

    def choose(self, label: str, option: str) -> None:
        self.element(label).click()
        self.wait(f"return [...document.querySelectorAll('[role=option]')].filter({VISIBLE})"
                  ".find(o => o.textContent.trim().endsWith(arguments[0]))", 10, option).click()  # fmt: skip

    def brush(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Draw a stroke on the canvas; positions are shares of its width and height."""
        from selenium.webdriver import ActionChains

        canvas = self.wait(f"return [...document.querySelectorAll('canvas')].filter({VISIBLE})[0]")
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
        width, height = canvas.size["width"], canvas.size["height"]
        (x0, y0), (x1, y1) = ([round((x - 0.5) * width), round((y - 0.5) * height)] for x, y in (start, end))
        chain = ActionChains(self.driver).move_to_element_with_offset(canvas, x0, y0).click_and_hold()
        chain.move_to_element_with_offset(canvas, (x0 + x1) // 2, (y0 + y1) // 2)
        chain.move_to_element_with_offset(canvas, x1, y1).release().perform()

    def keys(self, *names: str) -> None:
        from selenium.webdriver import ActionChains, Keys

        for name in names:
            ActionChains(self.driver).send_keys(getattr(Keys, name)).perform()

    def chord(self, *names: str) -> None:
        """Press several keys at once."""
        from selenium.webdriver import ActionChains, Keys

        *held, last = [getattr(Keys, name) for name in names]
        chain = ActionChains(self.driver)
        for key in held:
            chain.key_down(key)
        chain.send_keys(last)
        for key in held:
            chain.key_up(key)
        chain.perform()

    def open_more(self) -> None:
        """Open the settings that are hidden at first."""
        find = f"return [...document.querySelectorAll('button.label-wrap')].filter({VISIBLE})[0]"
        self.driver.execute_script("arguments[0].click()", self.wait(find, 5))

    def send_to(self, tab: str) -> None:
        find = "return [...document.querySelectorAll('#toolbar button')].find(b => b.innerText.trim() == arguments[0])"
        self.wait(find, 5, f"Send to {tab}").click()

    def focus(self, selector: str) -> None:
        self.driver.execute_script("document.querySelector(arguments[0]).focus()", selector)

    def tab_to(self, name: str, most: int = 40) -> None:
        """Press the tab key until the button with this name has the focus."""
        for _ in range(most + 1):
            if self.driver.switch_to.active_element.text.strip() == name:
                return
            self.keys("TAB")
        raise AssertionError(f"the tab key does not lead to {name}")

    @contextmanager
    def screen(self, width: int, height: int) -> Iterator[None]:
        """Emulate a screen; a narrow one is a phone's."""
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        yield
        self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    def overflow(self) -> int:
        """Number of pixels by which the page is wider than the screen."""
        return self.driver.execute_script("return document.documentElement.scrollWidth - innerWidth")

    def hosts(self) -> set[str]:
        """Hosts of all requests so far."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return {urlparse(url).hostname for url in urls if urlparse(url).scheme not in ("data", "blob", "chrome")}

    def complaints(self) -> list[str]:
        """Errors on the console."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


VISIBLE = "e => e.offsetParent !== null"
DONE = f"[...document.querySelectorAll('.again')].filter({VISIBLE})"
PICKS = f"return [...document.querySelectorAll('.pick img')].filter({VISIBLE}).map(i => i.src)"
TAB = f"""const tab = [...document.querySelectorAll('[role=tab], .overflow-dropdown button')].filter({VISIBLE})
    .find(t => t.textContent.trim() == arguments[0]);
tab?.click();
return tab;"""
BUTTON = f"""return [...document.querySelectorAll('button.primary, button.lg')].filter({VISIBLE})
    .find(b => b.textContent.trim() == arguments[0])"""
LABELLED = f"""for (const label of document.querySelectorAll('label, .block')) {{
    const name = label.querySelector('span, label');
    if (!name || name.textContent.trim() != arguments[0]) continue;
    const field = [...label.querySelectorAll('textarea, input')].find({VISIBLE});
    if (field) return field;
}}"""
PICTURES = f"return [...document.querySelectorAll('.unclip figure img')].filter({VISIBLE}).map(i => i.src)"
