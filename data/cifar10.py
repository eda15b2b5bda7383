"""CIFAR-10 (Krizhevsky 2009): 60,000 colour images of 32x32 pixels in ten classes, by torchvision."""

from functools import partial

from PIL import Image

from data import paths
from data.class_captions import article
from data.problems import Problems
from data.records import Listing, Record
from data.source_config import SourceConfig
from unclip.errors import UserError, reason

RAW = paths.RAW / "cifar10"
TEMPLATES = ("an image of {}", "a photo of {}", "a picture of {}", "a small photo of {}", "this is {}", "{}")
VALIDATION_EVERY = 10
"""Every tenth of the 50,000 training images serves for validation."""


def read_cifar10(config: SourceConfig, problems: Problems) -> Listing:
    """The records, and the names of the classes: all ten, or those that the config names.

    Raises UserError for an unknown class, or if the files are missing and cannot be fetched.
    """
    from torchvision.datasets import CIFAR10  # seconds to import, so only here

    root = config.root or RAW
    try:
        parts = {"train": CIFAR10(root, train=True, download=True), "test": CIFAR10(root, train=False)}
    except Exception as error:  # whatever a download may raise
        raise UserError(
            f"CIFAR-10 could not be fetched ({reason(error)}); put cifar-10-python.tar.gz in {root}, or name its "
            "folder with --data.root"
        ) from error
    known = parts["train"].classes
    classes = tuple(filter(None, config.classes.split(",")))
    if unknown := [name for name in classes if name not in known]:
        raise UserError(f"CIFAR-10 has no class {unknown[0]!r}; choose from {', '.join(known)}")
    classes = classes or tuple(known)
    records = []
    for part_name, part in parts.items():
        for row, (image, target) in enumerate(zip(part.data, part.targets, strict=True)):
            name = known[target]
            if name in classes:
                is_validation = part_name == "train" and row % VALIDATION_EVERY == 0
                records.append(
                    Record(
                        f"{part_name} {row}",
                        partial(Image.fromarray, image),
                        tuple(template.format(article(name)) for template in TEMPLATES),
                        label=classes.index(name),
                        split="validation" if is_validation else part_name,
                    )
                )
    return Listing(records, classes, size=32)
