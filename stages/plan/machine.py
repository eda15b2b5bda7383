"""Devices to train on, by their data sheets, and numbers as people write them."""

import math
import re
from dataclasses import dataclass

import torch

from stages.batches import PREFETCH
from unclip.errors import UserError, shown

SCALES = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12, "P": 1e15, "E": 1e18, "Z": 1e21}
DAY = 86_400
"""Seconds."""


@dataclass(frozen=True)
class Accelerator:
    peak: float
    """Floating-point operations per second of dense matrix products, as the data sheet has them."""
    memory: float
    """Bytes."""
    mfu: float = 0.4
    """Share of the peak that training is assumed to reach."""
    width: int = 2
    """Bytes of a number in those products: 2 for bfloat16, 4 for float32."""
    threads: int = PREFETCH
    """That draw batches at once, beside the steps."""

    @property
    def type(self) -> str:
        """PyTorch's name for such devices."""
        return "cpu" if self.width == 4 else "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """Type of the numbers in matrix products."""
        return torch.float32 if self.width == 4 else torch.bfloat16

    @property
    def usable(self) -> float:
        """Bytes for tensors: a tenth goes to the driver, the libraries, and gaps between tensors."""
        return 0.9 * self.memory


DEVICES = {
    # two cores of a server, which this project is measured on
    "cpu": Accelerator(1.5e11, 16e9, mfu=0.7, width=4, threads=1),
    "4090": Accelerator(165.2e12, 24e9),
    "a100": Accelerator(312e12, 80e9),
    "h100": Accelerator(989e12, 80e9),
    "h200": Accelerator(989e12, 141e9),
    "b200": Accelerator(2250e12, 180e9),
}


def count(text: str, option: str) -> float:
    """A positive number such as 51374, 650M or 1.5T. Raises UserError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?)([KMGBTP]?)", text.replace(",", "").replace("_", "").strip(), re.I)
    number = float(match[1]) * SCALES[match[2].upper()] if match else 0.0
    if not 0 < number < 1e18:
        raise UserError(f"{option} must be a positive number such as 51374, 650M or 1.5T, not {shown(text)}")
    return number


def short(number: float, unit: str = "") -> str:
    """Three digits and a scale: 1234567 -> 1.23 M."""
    power = min(int(math.log10(number * 1.0005) // 3), 7) if number >= 1 else 0
    letter = ("", "k", "M", "G", "T", "P", "E", "Z")[power]
    return f"{number / 1000**power:#.3g}".rstrip(".") + f" {letter}{unit}".rstrip()


def duration(seconds: float) -> str:
    """In the largest unit that leaves one or more of it."""
    for unit, size in (("years", 365.25 * DAY), ("days", DAY), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
