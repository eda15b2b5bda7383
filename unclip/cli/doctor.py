"""Say for each part of a pipeline whether it is healthy, in a checkout: the same as `python -m stages.doctor`."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from unclip.errors import UserError

CHECKOUT = Path(__file__).resolve().parents[2]


def main(argv: Sequence[str] | None = None) -> int | None:
    if not (CHECKOUT / "stages" / "doctor").is_dir():
        raise UserError("the doctor looks at training data, which the library alone cannot read; run it in a checkout")
    sys.path.append(str(CHECKOUT))  # an installed command finds the library alone
    return importlib.import_module("stages.doctor.__main__").main(argv)
