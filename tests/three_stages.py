"""The three stages on made-up data, small enough for a test, and without training."""

from dataclasses import replace
from pathlib import Path

import torch
from conftest import made_up_data
from runs import CPU

from data.dataset import ListedCaptions
from data.fashion_mnist_captions import PLAIN_CAPTIONS
from data.shuffling import batch_generator
from stages.batches import StepDraw
from stages.clip import CLIPRun, CLIPStage
from stages.decoder import DecoderRun, DecoderStage
from stages.embed import embed_images
from stages.inputs import CLIPInputs, Inputs
from stages.prior import PriorRun, PriorStage
from unclip.clip import CLIP, CLIPConfig, Preprocess, TextConfig, Tokenizer, VisionConfig, encode_captions
from unclip.decoder import DecoderConfig, DiffusionDecoderConfig, UNetConfig
from unclip.prior import DiffusionPriorConfig, PriorConfig
from unclip.registry import find_kind, resolve

CLIP_MODEL = CLIPConfig(
    16, VisionConfig(patch_size=14, width=16, layers=1, heads=2), TextConfig(width=16, layers=1, heads=2)
)
PRIOR_MODEL = DiffusionPriorConfig(PriorConfig(width=16, layers=1, heads=2))
SMALL_UNET = UNetConfig(width=8, multipliers=(1, 2), blocks=1, condition_width=32, head_dim=8)
DECODER_MODEL = DiffusionDecoderConfig(DecoderConfig(SMALL_UNET))


def make_inputs(cache: Path) -> Inputs:
    """A small untrained CLIP, and made-up data as it sees them."""
    data, validation = made_up_data(40, seed=0), made_up_data(20, seed=1)
    plain = torch.tensor([[data.captions.index(caption)] for caption in PLAIN_CAPTIONS])
    once = torch.ones(20, dtype=torch.long)
    validation.captioner = ListedCaptions(data.captions, plain[validation.labels], once)  # pairs share their captions
    tokenizer = Tokenizer.train(data.captions, 500)
    torch.manual_seed(0)
    text = replace(CLIP_MODEL.text, vocab_size=tokenizer.vocab_size, eos_id=tokenizer.end_id)
    clip = CLIP(replace(CLIP_MODEL, text=text)).eval()
    train, validation = (
        embed_images(part, clip, "c" * 64, tokenizer, Preprocess(28, 1), CPU, cache) for part in (data, validation)
    )
    class_embeddings = encode_captions(clip, tokenizer, PLAIN_CAPTIONS).embedding.detach()
    return Inputs(clip.config, "c" * 64, clip.scale().item(), class_embeddings, {}, train, validation, {})


def build_stage(stage_class, run, inputs):
    torch.manual_seed(0)
    stage = stage_class(run, stage_class.build_model(run, inputs.shapes), inputs, CPU)
    stage.fit_buffers()
    return stage


def clip_stage(inputs: Inputs, **options) -> CLIPStage:
    tokenizer = Tokenizer.train(inputs.train.data.captions, 500)
    clip_inputs = CLIPInputs(inputs.train.data, inputs.validation.data, tokenizer, {})
    return build_stage(CLIPStage, CLIPRun(**{"model": CLIP_MODEL} | options), clip_inputs)


def prior_stage(inputs: Inputs, **options) -> PriorStage:
    return build_stage(PriorStage, PriorRun(evaluate_on=10, model=PRIOR_MODEL, **options), inputs)


def decoder_stage(inputs: Inputs, **options) -> DecoderStage:
    options = {"evaluate_on": 10, "model": DECODER_MODEL} | options
    return build_stage(DecoderStage, DecoderRun(**options), inputs)


def kind_stage(part: str, kind: str, inputs: Inputs):
    """The stage of a kind by its preset tiny."""
    row = find_kind(part, kind)
    return build_stage(resolve(row.stage), replace(resolve(row.presets)["tiny"], evaluate_on=10), inputs)


def draw_of(count: int, seed: int = 0, rank: int = 0, ranks: int = 1) -> StepDraw:
    """The first examples of the data, in order, and what is random in a step of this seed."""
    return StepDraw(torch.arange(count), batch_generator(seed, 0), seed, 0, rank, ranks)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
