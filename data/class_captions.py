"""Captions for images that have a class but no text."""

from collections.abc import Sequence

from data.problems import Problems
from data.records import Listing
from unclip.errors import UserError


def article(noun: str) -> str:
    """ "an ankle boot", "a boot"."""
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def class_caption(name: str) -> str:
    """ "an image of an ankle boot"."""
    return f"an image of {article(name)}"


def name_classes(listing: Listing, names: Sequence[str], problems: Problems) -> Listing:
    """Replace captions that are nothing but class numbers by captions with the classes' names.

    Without names, captions that are all numbers are kept, and a note asks whether they are classes. Raises UserError if
    there are names, but captions that are not numbers.
    """
    texts = [record.captions[0] for record in listing.records if len(record.captions) == 1]
    are_numbers = (
        not listing.classes and bool(texts) and len(texts) == len(listing.records) and all(map(str.isdecimal, texts))
    )
    if not names:
        if are_numbers:
            examples = ", ".join(sorted(set(texts), key=int)[:3])
            problems.note(
                "numbers",
                f"all captions are whole numbers ({examples} ...) and are used as they are; if they number classes, "
                "name the classes in order: --data.class-names cat,dog",
            )
        return listing
    if not are_numbers:
        raise UserError(f"{problems.source} has captions that are not class numbers; leave --data.class-names out")
    records = []
    for record, number in zip(listing.records, map(int, texts), strict=True):
        if number < len(names):
            records.append(record._replace(captions=(class_caption(names[number]),), label=number))
        else:
            problems.add(record.name, f"has class {number}, but only classes 0 to {len(names) - 1} have names")
    return listing._replace(records=records, classes=tuple(names))
