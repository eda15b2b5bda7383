"""CIFAR-10 (Krizhevsky 2009): 60,000 colour images of 32x32 pixels in ten classes, by torchvision."""

from functools import partial
from pathlib import Path

from PIL import Image

from data import paths
from data.class_captions import article
from data.records import Listing, Record
from unclip.errors import UserError, reason

RAW = paths.RAW / "cifar10"
TEMPLATES = ("an image of {}", "a photo of {}", "a picture of {}", "a small photo of {}", "this is {}", "{}")


def read(root: Path | None, classes: tuple[str, ...] = ()) -> Listing:
    """The records, and the names of the classes: all ten, or those asked for.

    Raises UserError for an unknown class, or if the files are neither there nor to be fetched.
    """
    from torchvision.datasets import CIFAR10  # seconds to import, so only here

    root = root or RAW
    try:
        parts = {"train": CIFAR10(root, train=True, download=True), "test": CIFAR10(root, train=False)}
    except Exception as error:  # whatever a download may raise
        raise UserError(
            f"CIFAR-10 could not be fetched ({reason(error)}); put cifar-10-python.tar.gz in {root}, or name its "
            "folder with --data.root"
        ) from error
    known = parts["train"].classes
    if unknown := [name for name in classes if name not in known]:
        raise UserError(f"CIFAR-10 has no class {unknown[0]!r}; choose from {', '.join(known)}")
    chosen = list(classes) or known
    records = []
    for split, part in parts.items():
        for row, (image, target) in enumerate(zip(part.data, part.targets, strict=True)):
            if known[target] in chosen:
                captions = tuple(template.format(article(known[target])) for template in TEMPLATES)
                label = chosen.index(known[target])
                own = split if split == "test" or row % 10 else "validation"  # every tenth of the 50,000
                records.append(Record(f"{split} {row}", partial(Image.fromarray, image), captions, label, own))
    return Listing(records, tuple(chosen), 32)
