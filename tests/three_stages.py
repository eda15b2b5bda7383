"""The three stages on made-up data, small enough for a test, and without training."""

from pathlib import Path

import torch
from conftest import made_up_data
from runs import CPU

from data.dataset import ListedCaptions
from data.fashion_mnist_captions import PLAIN_CAPTIONS
from stages import decoder, prior
from stages.clip import AugmentConfig, CLIPStage
from stages.decoder import DecoderRun, DecoderStage
from stages.embed import embed_images
from stages.inputs import Inputs
from stages.prior import PriorRun, PriorStage
from unclip.clip import CLIP, CLIPConfig, Preprocess, TextConfig, Tokenizer, VisionConfig, encode_captions
from unclip.decoder import Decoder, DecoderConfig
from unclip.prior import Prior, PriorConfig


def make_inputs(cache: Path) -> Inputs:
    """A small untrained CLIP, and made-up data as it sees them."""
    data, validation = made_up_data(40, seed=0), made_up_data(20, seed=1)
    plain = torch.tensor([[data.captions.index(caption)] for caption in PLAIN_CAPTIONS])
    once = torch.ones(20, dtype=torch.long)
    validation.captioner = ListedCaptions(data.captions, plain[validation.labels], once)  # pairs share their captions
    tokenizer = Tokenizer.train(data.captions, 500)
    torch.manual_seed(0)
    text = TextConfig(tokenizer.vocab_size, tokenizer.end_id, width=16, layers=1, heads=2)
    clip = CLIP(CLIPConfig(16, VisionConfig(patch_size=14, width=16, layers=1, heads=2), text)).eval()
    embedded = (
        embed_images(part, clip, "c" * 64, tokenizer, Preprocess(28, 1), CPU, cache) for part in (data, validation)
    )
    rivals = encode_captions(clip, tokenizer, PLAIN_CAPTIONS).embedding.detach()
    return Inputs(clip.config, "c" * 64, clip.scale().item(), rivals, {}, *embedded)


def clip_stage(inputs: Inputs) -> CLIPStage:
    tokenizer = Tokenizer.train(inputs.train.data.captions, 500)
    torch.manual_seed(0)
    return CLIPStage(CLIP(inputs.clip), tokenizer, inputs.train.data, inputs.validation.data, AugmentConfig(), CPU)


def prior_stage(inputs: Inputs, **options) -> PriorStage:
    torch.manual_seed(0)
    model = Prior(PriorConfig(16, 16, inputs.clip.text.context, 16, layers=1, heads=2, rivals=len(inputs.rivals)))
    prior.fit(model, inputs, seed=0)
    return PriorStage(model, inputs, PriorRun(evaluate_on=10, **options), CPU)


def decoder_stage(inputs: Inputs) -> DecoderStage:
    torch.manual_seed(0)
    unet = {"width": 8, "multipliers": (1, 2), "blocks": 1, "condition_width": 32, "head_dim": 8}
    model = Decoder(DecoderConfig(embed_dim=16, text_width=16, **unet))
    decoder.fit(model, inputs.train)
    return DecoderStage(model, inputs, DecoderRun(evaluate_on=10), CPU)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
