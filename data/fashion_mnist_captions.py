"""Captions for Fashion-MNIST: language, not ten labels.

A caption is a template around a noun phrase: one of the class's names, and up to two attributes that are measured on
the pixels. `attributes` measures them, on real and generated images alike:

    garment    the pixels of at least 32 (of 255)
    tone       the mean value of the garment's pixels: "dark" in the class's lowest third, "light" in its highest
    width      garment pixels per row that has any: "narrow" in the class's lowest third, "wide" in its highest

The thirds are those of the class's training images. Captions do not mention the middle third.
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

SINGULAR = ("this is {a}", "here is {a}")
"""Templates that do not fit plurals ("this is trousers"); the first template takes their place."""

TONES = ("", "dark", "light")
WIDTHS = ("", "narrow", "wide")

HELD_OUT = (("light", "ankle boot"), ("wide", "sneaker"))
"""Pairs of attribute and class that are in no training caption and no training image: they test composition.

The choice makes the test fair. Images of these pairs still look like their class to a model that has not seen them;
light sneakers would not, as the light shoes left in training would be sandals and boots. And the attribute means the
same in these classes as in others; the width of trousers is that of their legs, which no other garment has.
"""


def attributes(images: Tensor) -> Tensor:
    """Measure tone and width (N, 2) of uint8 images (N, 1, H, W). An image without a garment measures (0, 0)."""
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
    """Codes (N, 2) into TONES and WIDTHS: 1 below the lower bound of the class, 2 above the upper one, else 0."""
    low, high = bounds[labels].unbind(dim=-1)  # each (N, 2)
    return (measures < low).long() + 2 * (measures > high).long()


def is_held_out(codes: Tensor, labels: Tensor) -> Tensor:
    """Whether each image (N,) shows a held-out pair."""
    pairs = zip(labels.tolist(), codes.tolist(), strict=True)
    return torch.tensor(
        [_names_held_out_pair(CLASSES[c], TONES[tone], WIDTHS[width]) for c, (tone, width) in pairs], dtype=torch.bool
    )


def _names_held_out_pair(name: str, tone: str, width: str) -> bool:
    return (tone, name) in HELD_OUT or (width, name) in HELD_OUT


def noun_phrase(name: str, tone: str, width: str, width_first: bool) -> tuple[str, str]:
    """The phrase with and without its article: ("a dark narrow dress", "dark narrow dress"); plurals take none."""
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
    """ "an image of a dark sneaker": every class with every attribute, the held-out pairs included."""
    requests = []
    for label, name in enumerate(CLASSES):
        for measure, words in enumerate((TONES, WIDTHS)):
            for code, word in enumerate(words[1:], start=1):
                tone, width = (word, "") if measure == 0 else ("", word)
                caption = f"an image of {noun_phrase(name, tone, width, False)[0]}"
                requests.append(
                    AttributeRequest(caption, label, measure, code, _names_held_out_pair(name, tone, width))
                )
    return requests


@dataclass
class Grammar:
    """All training captions."""

    captions: list[str]
    caption_ids: Tensor
    """The index into `captions` by template, class, name, tone, width and order of the two; -1 for held-out pairs."""

    @classmethod
    def build(cls) -> "Grammar":
        captions: dict[str, int] = {}
        caption_ids = torch.full((len(TEMPLATES), len(CLASSES), len(NAMES[0]), len(TONES), len(WIDTHS), 2), -1)
        for index in itertools.product(*map(range, caption_ids.shape)):
            template, label, name, tone, width, order = index
            if _names_held_out_pair(CLASSES[label], TONES[tone], WIDTHS[width]):
                continue
            if NAMES[label][name] in PLURAL and TEMPLATES[template] in SINGULAR:
                template = 0
            a, bare = noun_phrase(NAMES[label][name], TONES[tone], WIDTHS[width], bool(order))
            caption = TEMPLATES[template].format(a=a, bare=bare)
            caption_ids[index] = captions.setdefault(caption, len(captions))
        return cls(list(captions), caption_ids)

    def class_prompts(self) -> tuple[tuple[str, ...], ...]:
        """The captions of each class that name no attribute."""
        ids_by_class = (self.caption_ids[:, label, :, 0, 0].unique().tolist() for label in range(len(CLASSES)))
        return tuple(tuple(self.captions[caption_id] for caption_id in ids) for ids in ids_by_class)

    def draw(self, labels: Tensor, codes: Tensor, generator: torch.Generator, one_phrasing: bool = False) -> Tensor:
        """Draw a caption id (B,) for each image, from its label (B,) and codes (B, 2).

        Each attribute is mentioned half of the time. With one_phrasing, the template, the name and the attributes to
        mention are drawn once for all images. Captions that mean the same are then the same string, so the contrastive
        loss never sets synonyms against each other.
        """
        size = 1 if one_phrasing else len(labels)

        def pick(n: int) -> Tensor:
            return torch.randint(n, (size,), generator=generator).expand(len(labels))

        template = pick(len(TEMPLATES))
        name = pick(len(NAMES[0]))
        order = pick(2)
        tone, width = (codes * torch.stack([pick(2), pick(2)], dim=1)).unbind(dim=1)
        caption_ids = self.caption_ids[template, labels, name, tone, width, order]
        plain_ids = self.caption_ids[template, labels, name, 0, 0, order]
        return torch.where(caption_ids < 0, plain_ids, caption_ids)  # a held-out pair is not mentioned


@dataclass
class GrammarCaptions:
    """The captioner of Fashion-MNIST (see `data.dataset.Captioner`): draws captions from the grammar."""

    grammar: Grammar
    labels: Tensor
    """Class numbers (N,)."""
    attributes: Tensor
    """Codes (N, 2), see `attribute_codes`."""

    @property
    def captions(self) -> list[str]:
        return self.grammar.captions

    @property
    def counts(self) -> Tensor:
        """Each attribute that can be mentioned doubles the choice."""
        return 2 ** (self.attributes > 0).sum(dim=1)

    def draw(self, rows: Tensor, generator: torch.Generator, one_phrasing: bool = False) -> Tensor:
        return self.grammar.draw(self.labels[rows], self.attributes[rows], generator, one_phrasing)

    def assignment(self) -> list[Tensor]:
        return [self.labels, self.attributes]
