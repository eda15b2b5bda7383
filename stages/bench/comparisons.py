"""The rows of the table: a piece of work, our code for it, and others' code for it."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from stages.bench import other_projects, our_code, plain_code
from stages.bench.contender import Contender
from stages.bench.workload import Inputs

Builder = Callable[[Inputs], Contender]

MODULES = {"open_clip": "open_clip", "diffusers": "diffusers", "dalle2-pytorch": "dalle2_pytorch"}
"""Other projects, and the modules that they are imported as."""
PLAIN = "plain code"


@dataclass(frozen=True)
class Comparison:
    title: str
    """It may name sizes of the inputs, as {tokens}."""
    our_builder: Builder
    other_builders: dict[str, Builder]
    """By the name of the project, a key of MODULES, or PLAIN."""


def make_comparisons() -> list[list[Comparison]]:
    """Return the comparisons in groups. Contenders of a group are timed in turns.

    A builder that stands in several comparisons of a group is built and timed once.
    """
    return [
        [
            Comparison(
                "CLIP training, {context} tokens, all captions distinct",
                partial(our_code.train_clip, distinct=True),
                {"open_clip": other_projects.open_clip_train},
            ),
            Comparison(
                "CLIP training, Fashion-MNIST's captions ({distinct} distinct, {longest} tokens)",
                partial(our_code.train_clip, distinct=False),
                {"open_clip": other_projects.open_clip_train, PLAIN: plain_code.train_clip},
            ),
        ],
        [
            Comparison(
                "prior training, {context} tokens",
                lambda inputs: our_code.train_prior(inputs, inputs.shapes.context),
                {
                    "diffusers": other_projects.diffusers_train_prior,
                    "dalle2-pytorch": other_projects.dalle2_train_prior,
                },
            ),
            Comparison(
                "prior training, {tokens} tokens, which others pad to {context}",
                lambda inputs: our_code.train_prior(inputs, inputs.shapes.tokens),
                {
                    "diffusers": other_projects.diffusers_train_prior,
                    "dalle2-pytorch": other_projects.dalle2_train_prior,
                    PLAIN: plain_code.train_prior,
                },
            ),
        ],
        [
            Comparison(
                "decoder training, {context} tokens",
                lambda inputs: our_code.train_decoder(inputs, inputs.shapes.context),
                {
                    "diffusers": other_projects.diffusers_train_decoder,
                    "dalle2-pytorch": other_projects.dalle2_train_decoder,
                },
            ),
            Comparison(
                "decoder training, {tokens} tokens, which others pad to {context}",
                lambda inputs: our_code.train_decoder(inputs, inputs.shapes.tokens),
                {
                    "diffusers": other_projects.diffusers_train_decoder,
                    "dalle2-pytorch": other_projects.dalle2_train_decoder,
                    PLAIN: plain_code.train_decoder,
                },
            ),
        ],
        [
            Comparison(
                "one guided step of the decoder, {context} tokens",
                our_code.guided_step,
                {
                    "diffusers": other_projects.diffusers_guided_step,
                    "dalle2-pytorch": other_projects.dalle2_guided_step,
                },
            ),
            Comparison(
                "sampling by the decoder (diffusers: 50 guided steps; plain code: 1,000, extrapolated from 2)",
                our_code.sample,
                {"diffusers": other_projects.diffusers_sample, PLAIN: plain_code.sample},
            ),
            Comparison(
                "sampling by the fast decoder, two calls (diffusers: 50 guided steps)",
                our_code.sample_fast,
                {"diffusers": other_projects.diffusers_sample},
            ),
        ],
    ]


def is_missing(name: str) -> bool:
    """Whether another project is not installed."""
    return name in MODULES and importlib.util.find_spec(MODULES[name]) is None
