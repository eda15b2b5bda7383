"""The table's rows: a piece of work, our way of doing it, and others'."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from stages.bench import naive, ours, peers
from stages.bench.contender import Contender
from stages.bench.workload import Inputs

Build = Callable[[Inputs], Contender]

MODULES = {"open_clip": "open_clip", "diffusers": "diffusers", "dalle2-pytorch": "dalle2_pytorch"}
"""Other projects, and what they are imported as."""
PLAIN = "plain code"


@dataclass(frozen=True)
class Work:
    title: str
    """May name the inputs' sizes, as {tokens}."""
    ours: Build
    others: dict[str, Build]
    """By whose code it is: a key of MODULES, or PLAIN."""


def works() -> list[list[Work]]:
    """In groups: what is in one is timed in turns. A builder that stands in several rows is timed once for all."""
    clip, prior, decoder = peers.open_clip_train, peers.diffusers_train_prior, peers.diffusers_train_decoder
    dalle2_prior, dalle2_decoder = peers.dalle2_train_prior, peers.dalle2_train_decoder
    return [
        [
            Work("CLIP training, {context} tokens, all captions distinct", partial(ours.train_clip, distinct=True),
                 {"open_clip": clip}),
            Work("CLIP training, Fashion-MNIST's captions ({distinct} distinct, {longest} tokens)",
                 partial(ours.train_clip, distinct=False), {"open_clip": clip, PLAIN: naive.train_clip}),
        ],
        [
            Work("prior training, {context} tokens", lambda inputs: ours.train_prior(inputs, inputs.shapes.context),
                 {"diffusers": prior, "dalle2-pytorch": dalle2_prior}),
            Work("prior training, {tokens} tokens, which others pad to {context}",
                 lambda inputs: ours.train_prior(inputs, inputs.shapes.tokens),
                 {"diffusers": prior, "dalle2-pytorch": dalle2_prior, PLAIN: naive.train_prior}),
        ],
        [
            Work("decoder training, {context} tokens", lambda inputs: ours.train_decoder(inputs, inputs.shapes.context),
                 {"diffusers": decoder, "dalle2-pytorch": dalle2_decoder}),
            Work("decoder training, {tokens} tokens, which others pad to {context}",
                 lambda inputs: ours.train_decoder(inputs, inputs.shapes.tokens),
                 {"diffusers": decoder, "dalle2-pytorch": dalle2_decoder, PLAIN: naive.train_decoder}),
        ],
        [
            Work("one guided step of the decoder, {context} tokens", ours.guided_step,
                 {"diffusers": peers.diffusers_guided_step, "dalle2-pytorch": peers.dalle2_guided_step}),
            Work("drawing as shipped (diffusers: 50 guided steps; plain code: 1,000, extrapolated from 2)", ours.draw,
                 {"diffusers": peers.diffusers_draw, PLAIN: naive.draw}),
        ],
    ]  # fmt: skip


def is_missing(name: str) -> bool:
    """Whether another project's code is not installed."""
    return name in MODULES and importlib.util.find_spec(MODULES[name]) is None
