"""How fast the page without a server is: python tests/web_speed.py [SITE].

It opens the site, by default that of checkpoints/fashion-mnist, in chromium from this machine, three times with an
empty cache, and prints the best of each figure beside its bound. The exit status is 1 where one is missed.
"""

import sys
import tempfile
from pathlib import Path

from browser import ROOT, Browser, served_folder

from unclip.web.export import export_web

VISITS = 3
PREVIEW = """
const [n, done] = arguments;
document.getElementById("number").value = n;
document.getElementById("pictures").replaceChildren();
const began = performance.now();
const watcher = new MutationObserver(() => {
  watcher.disconnect();
  requestAnimationFrame(() => setTimeout(() => done((performance.now() - began) / 1000)));
});
watcher.observe(document.getElementById("pictures"), { childList: true });
document.getElementById("draw").click();
"""
IS_READY = "return document.getElementById('message').textContent === 'Ready.' && performance.now() / 1000"
SECONDS = "return Number(document.getElementById('message').textContent.match(/pictures in ([\\d.]+) s/)?.[1])"
STEPS = "return document.getElementById('steps').valueAsNumber"


def visit(address: str) -> tuple[dict[str, float], bool]:
    """The figures of one visit in seconds, and whether the fast decoder drew."""
    browser = Browser()
    try:
        browser.driver.get(address)
        figures = {"ready": browser.wait(IS_READY, 120)}
        is_fast = browser.driver.execute_script(STEPS) <= 4
        figures["first preview of 4 pictures"] = browser.driver.execute_async_script(PREVIEW, 4)
        figures["4 pictures"] = browser.wait(SECONDS, 120)
        browser.driver.execute_async_script(PREVIEW, 16)
        figures["16 pictures"] = browser.wait(SECONDS, 120)
        browser.driver.get(address)
        figures["ready once more"] = browser.wait(IS_READY, 120)
    finally:
        browser.close()
    return figures, is_fast


def measure(site: Path) -> int:
    """Print the figures of a site. Returns 0 where all keep their bounds, else 1."""
    megabytes = sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) / 1e6
    with served_folder(site) as address:
        visits = [visit(address) for _ in range(VISITS)]
    figures = {"MB of the site": megabytes}
    figures |= {name: min(figures[name] for figures, _ in visits) for name in visits[0][0]}
    bounds = {
        "MB of the site": 20,
        "ready": 3,
        "first preview of 4 pictures": 1.5,
        "16 pictures": 3 if visits[0][1] else 6,
    }
    for name, value in figures.items():
        bound = f"at most {bounds[name]}" if name in bounds else ""
        print(f"{name:28} {value:6.2f}  {bound}")
    return int(any(figures[name] > bound for name, bound in bounds.items()))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(measure(Path(sys.argv[1])))
    with tempfile.TemporaryDirectory() as temporary:
        export_web([ROOT / "checkpoints" / "fashion-mnist"], Path(temporary) / "site")
        sys.exit(measure(Path(temporary) / "site"))
