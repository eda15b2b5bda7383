"""Captions for Fashion-MNIST: language, not ten labels.

A caption is a template around a noun phrase: one of the class's names, and up to two attributes that are measured on
the pixels. `attributes` is the rule; it serves real and generated images alike:

    garment    the pixels of at least 32 (of 255)
    tone       the mean value of the garment's pixels: "dark" in the class's lowest third, "light" in its highest
    width      garment pixels per row that has any: "narrow" in the class's lowest third, "wide" in its highest

The thirds are those of the class's training images; of the middle third nothing is said.
"""

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from data.class_captions import article

CLASSES = (
    "t-shirt/top", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip

NAMES = (
    ("t-shirt/top", "t-shirt", "top"),
    ("trousers", "pair of trousers", "pants"),
    ("pullover", "sweater", "jumper"),
    ("dress", "gown", "frock"),
    ("coat", "overcoat", "jacket"),
    ("sandal", "strappy sandal", "open sandal"),
    ("shirt", "button-up shirt", "blouse"),
    ("sneaker", "trainer", "running shoe"),
    ("bag", "handbag", "purse"),
    ("ankle boot", "boot", "bootie"),
)
PLURAL = {"trousers", "pants"}

TEMPLATES = (
    "an image of {a}", "an image of {a}", "a photo of {a}", "a picture of {a}", "{a}", "{bare}", "this is {a}",
    "an image showing {a}", "a small image of {a}", "a grey image of {a}", "a product photo of {a}",
    "a catalogue picture of {a}", "a photograph of {a}", "a drawing of {a}", "here is {a}", "{a} on a black background",
)  # fmt: skip

SINGULAR = ("this is {a}", "here is {a}")  # "this is trousers" is not English: the first template takes their place

TONES, WIDTHS = ("", "dark", "light"), ("", "narrow", "wide")

HELD_OUT = (("light", "ankle boot"), ("wide", "sneaker"))
"""Pairs that occur together in no training caption and no training image: they test composition.

They are chosen so that the test is fair. Their images still look like their class to a model that has not seen them;
light sneakers would not, as what is left of light shoes are sandals and boots. And the attribute means in this class
what it means in others; what tells narrow trousers from wide ones, the legs, tells no other garments apart.
"""


def attributes(images: Tensor) -> Tensor:
    """Measure tone and width, (N, 2), of uint8 images (N, 1, H, W). An image without a garment measures (0, 0)."""
    garment = images[:, 0] >= 32  # (N, H, W)
    area = garment.sum(dim=(1, 2)).clamp(min=1)
    rows = garment.any(dim=2).sum(dim=1).clamp(min=1)
    tone = (images[:, 0] * garment).sum(dim=(1, 2), dtype=torch.float) / area
    width = garment.sum(dim=(1, 2)) / rows
    return torch.stack([tone, width], dim=1)


def class_bounds(measures: Tensor, labels: Tensor) -> Tensor:
    """The two bounds between the thirds of each class: (classes, 2 measures, 2 bounds)."""
    quantiles = torch.tensor([1 / 3, 2 / 3])
    return torch.stack([torch.quantile(measures[labels == c], quantiles, dim=0).T for c in range(len(CLASSES))])


def attribute_codes(measures: Tensor, labels: Tensor, bounds: Tensor) -> Tensor:
    """(N, 2) codes into TONES and WIDTHS: 0 unsaid, 1 below the lower bound of the class, 2 above the upper one."""
    low, high = bounds[labels].unbind(dim=-1)  # each (N, 2)
    return (measures < low).long() + 2 * (measures > high).long()


def is_held_out(codes: Tensor, labels: Tensor) -> Tensor:
    """(N,), True for images that show a held-out pair."""
    pairs = zip(labels.tolist(), codes.tolist(), strict=True)
    return torch.tensor(
        [_says_held_out(CLASSES[c], TONES[tone], WIDTHS[width]) for c, (tone, width) in pairs], dtype=torch.bool
    )


def _says_held_out(name: str, tone: str, width: str) -> bool:
    return (tone, name) in HELD_OUT or (width, name) in HELD_OUT


def noun_phrase(name: str, tone: str, width: str, width_first: bool) -> tuple[str, str]:
    """The phrase with its article where it takes one, and without: ("a dark narrow dress", "dark narrow dress")."""
    words = [width, tone] if width_first else [tone, width]
    bare = " ".join([*filter(None, words), name])
    if name in PLURAL:
        return bare, bare
    return article(bare), bare


PLAIN_CAPTIONS = tuple(f"an image of {noun_phrase(name, '', '', False)[0]}" for name in CLASSES)


class AttributeRequest(NamedTuple):
    """A caption that asks for one attribute of one class."""

    caption: str
    label: int
    measure: int
    """Column of the codes: 0 tone, 1 width."""
    code: int
    held_out: bool

    @property
    def word(self) -> str:
        return (TONES, WIDTHS)[self.measure][self.code]


def attribute_captions() -> list[AttributeRequest]:
    """ "an image of a dark sneaker": every class with every attribute, those that no training caption says included."""
    asked = []
    for label, name in enumerate(CLASSES):
        for measure, words in enumerate((TONES, WIDTHS)):
            for code, word in enumerate(words[1:], start=1):
                tone, width = (word, "") if measure == 0 else ("", word)
                caption = f"an image of {noun_phrase(name, tone, width, False)[0]}"
                asked.append(AttributeRequest(caption, label, measure, code, _says_held_out(name, tone, width)))
    return asked


@dataclass
class Grammar:
    """All training captions, numbered: `ids` maps (template, class, name, tone, width, order) to a caption's row."""

    captions: list[str]
    ids: Tensor

    @classmethod
    def build(cls) -> "Grammar":
        captions: dict[str, int] = {}
        ids = torch.full((len(TEMPLATES), len(CLASSES), len(NAMES[0]), len(TONES), len(WIDTHS), 2), -1)
        for index in itertools.product(*map(range, ids.shape)):
            template, label, name, tone, width, order = index
            if _says_held_out(CLASSES[label], TONES[tone], WIDTHS[width]):
                continue
            if NAMES[label][name] in PLURAL and TEMPLATES[template] in SINGULAR:
                template = 0
            a, bare = noun_phrase(NAMES[label][name], TONES[tone], WIDTHS[width], bool(order))
            caption = TEMPLATES[template].format(a=a, bare=bare)
            ids[index] = captions.setdefault(caption, len(captions))
        return cls(list(captions), ids)

    def class_prompts(self) -> tuple[tuple[str, ...], ...]:
        """For each class its captions without attributes."""
        rows = (self.ids[:, label, :, 0, 0].unique().tolist() for label in range(len(CLASSES)))
        return tuple(tuple(self.captions[i] for i in ids) for ids in rows)

    def draw(self, labels: Tensor, codes: Tensor, generator: torch.Generator, one_phrasing: bool = False) -> Tensor:
        """Draw a caption id (B,) for each image.

        Each attribute is said half of the time. With one_phrasing the template, the choice of name and what is said
        are drawn once for all images, so that two of the captions that mean the same are the same string: the
        contrastive loss then never sets synonyms against each other.
        """
        size = 1 if one_phrasing else len(labels)

        def pick(n: int) -> Tensor:
            return torch.randint(n, (size,), generator=generator).expand(len(labels))

        template, name, order = pick(len(TEMPLATES)), pick(len(NAMES[0])), pick(2)
        said = codes * torch.stack([pick(2), pick(2)], dim=1)
        drawn = self.ids[template, labels, name, said[:, 0], said[:, 1], order]
        plain = self.ids[template, labels, name, 0, 0, order]
        return torch.where(drawn < 0, plain, drawn)  # of a held-out pair nothing is said


@dataclass
class GrammarCaptions:
    """What the grammar says of images: the captioner of Fashion-MNIST (data/dataset.py)."""

    grammar: Grammar
    labels: Tensor
    """(N,)."""
    attributes: Tensor
    """(N, 2), see `attribute_codes`."""

    @property
    def captions(self) -> list[str]:
        return self.grammar.captions

    def draw(self, rows: Tensor, generator: torch.Generator, one_phrasing: bool = False) -> Tensor:
        return self.grammar.draw(self.labels[rows], self.attributes[rows], generator, one_phrasing)

    def assignment(self) -> list[Tensor]:
        return [self.labels, self.attributes]
