"""A page in the browser to draw, vary, blend, edit, mix, inpaint, and look inside.

    make page                                              # sets up, then serves http://127.0.0.1:7860
    python -m unclip.page --checkpoints checkpoints        # where the extra is installed: pip install '.[page]'

This machine serves everything, and contacts no other, except to fetch a pipeline that --checkpoints names on the
Hugging Face Hub. The page offers every complete pipeline in the folder. On two CPU cores the first picture is there a
second or two after the click.
"""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unclip.cli.options import parse
from unclip.cli.run import run
from unclip.errors import UserError
from unclip.settings import Device


@dataclass(frozen=True)
class PageOptions:
    checkpoints: Path = Path("checkpoints")
    """Folder that holds the trained pipelines, one folder each; or one pipeline: its folder, or its name OWNER/NAME on
    the Hugging Face Hub."""
    host: str = "127.0.0.1"
    """Address to serve at; 0.0.0.0 lets other machines in, by the token in the address that is printed."""
    port: int = 7860
    """Port to serve at."""
    show: bool = False
    """Also open the page in the browser."""
    device: Device = "auto"
    """Where to draw: auto takes a GPU if there is one."""

    def __post_init__(self):
        if not 1 <= self.port <= 65535:
            raise UserError(f"--port must lie between 1 and 65535, not {self.port}")


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(PageOptions, __doc__, argv=argv)

    from unclip.devices import pick_device
    from unclip.page.shelf import Shelf

    shelf = Shelf(options.checkpoints, pick_device(options.device))  # fetched now, if need be, and the Hub asked once
    with tempfile.TemporaryDirectory(prefix="unclip-page-") as folder:
        set_environment(folder)
        try:
            import gradio  # noqa: F401
        except ImportError:
            raise UserError("the page needs gradio; install it with: pip install '.[page]'") from None

        from unclip.page.server import serve

        serve(shelf, options.host, options.port, options.show)


def set_environment(folder: str) -> None:
    """Set what gradio reads when it is imported: visitors' files go to `folder`, and only our options open doors."""
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    os.environ.update(
        GRADIO_TEMP_DIR=os.path.realpath(folder),
        GRADIO_EXAMPLES_CACHE=os.path.realpath(folder),
        GRADIO_ANALYTICS_ENABLED="False",
        GRADIO_ANALYTICS_MAX_EVENTS="100",  # which are kept in memory,
        GRADIO_ANALYTICS_CACHE_FREQUENCY=str(10**9),  # and summed up after so many
        HF_HUB_OFFLINE="1",
    )


if __name__ == "__main__":
    run(main)
