"""Take the picture of the page that its documentation shows.

python tests/screenshot.py checkpoints/fashion-mnist/page.png
"""

import base64
import sys
import tempfile
import time
from pathlib import Path

from browser import NEW_LINE, Browser, served

CAPTIONS = "an ankle boot\na dark narrow dress\na light coat\na wide bag"


def main(out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, served(Path(folder) / "log.txt") as address:
        page = Browser(1280, 1160)
        try:
            page.open(address)
            page.fill("Captions, one per line", CAPTIONS.replace("\n", NEW_LINE))
            began = time.perf_counter()
            page.answered(lambda: page.press("Draw"))
            print(f"sixteen pictures after {time.perf_counter() - began:.1f} s")
            page.driver.execute_script("document.activeElement.blur(); scrollTo(0, 0)")
            shot = page.driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
        finally:
            page.close()
    out.write_bytes(base64.b64decode(shot["data"]))
    print(f"{out}: {out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
