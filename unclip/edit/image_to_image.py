"""Image to image: noise a picture by a share, and denoise it to a caption (Meng et al. 2022, SDEdit, 2108.01073)."""

from typing import Any

import torch

from unclip.arguments import Captions, captions_per_image, samples_each
from unclip.devices import inference
from unclip.diffusion.noise import DECODER_STREAM, RowNoise
from unclip.diffusion.prediction import add_noise
from unclip.diffusion.process import Level
from unclip.diffusion.spacing import SPACINGS
from unclip.drawing import as_array, batches, check_guided, process_images
from unclip.edit.defaults import DEFAULTS, check_settings
from unclip.edit.image_inputs import Pictures, prepare_images
from unclip.edit.inversion import require_ability
from unclip.errors import UserError
from unclip.images import to_float
from unclip.interfaces import CanDenoise
from unclip.outputs import Output
from unclip.pipeline import UnCLIP
from unclip.registry import choose_sampler
from unclip.settings import DecoderSettings, seed_list


@inference()
def image_to_image(
    pipe: UnCLIP,
    images: Pictures,
    captions: Captions | None = None,
    strength: float = 0.8,
    n: int = 1,
    seed: int = 0,
    negative: Captions | None = None,
    **settings: Any,
) -> Output:
    """Draw n new versions of each image to its caption, which keep its layout and its colours.

    Args:
        captions: one for each image or one for all, from which the prior draws the embeddings. With None the image's
            own embedding is used.
        strength: how much changes, from 0, nothing, to 1, all: the share of the way to pure noise that the image is
            taken. Of the steps those below are drawn.
        seed: version i of every image uses seed + i.
        negative: as for calling the pipeline.
    """
    if not 0 <= strength <= 1:
        raise UserError(f"strength must be from 0 to 1, not {strength}")
    check_settings(pipe, "image_to_image" if captions is None else "image_to_image with a caption", settings)
    decoder = require_ability(pipe, CanDenoise, "start from a noised image")
    sampling = pipe.sampling.override(**DEFAULTS["image_to_image"] | settings)
    prepared = prepare_images(pipe, images)
    each = samples_each(n, len(prepared))
    seeds = seed_list(seed, each) * len(prepared)
    per_image = captions_per_image(captions, len(prepared))
    repeated = [caption for caption in per_image for _ in range(each)]
    negatives = None if negative is None else captions_per_image(negative, len(prepared))
    text = pipe.encode_captions(repeated, negatives and [caption for caption in negatives for _ in range(each)])
    check_guided(text, sampling.decoder, *([] if captions is None else [sampling.prior]))
    if captions is None:
        embeddings = pipe.encode_image(prepared).repeat_interleave(each, dim=0)
    else:
        embeddings = pipe.draw_embeddings(text, seeds, sampling)
    pixels = to_float(torch.from_numpy(prepared).permute(0, 3, 1, 2)).repeat_interleave(each, dim=0)
    levels = levels_below(decoder, sampling.decoder, strength)
    drawn = []
    for batch in batches(len(seeds), sampling.batch_size):
        source = RowNoise(seeds[batch], DECODER_STREAM)
        image = pixels[batch].to(pipe.device)
        noise = source(image)
        x = noise if strength == 1 else add_noise(image, noise, levels[0].alpha, levels[0].sigma)
        given = (embeddings[batch], text[batch])
        x = choose_sampler(sampling.decoder)(decoder.denoiser(*given, sampling.decoder), x, levels, source)
        drawn.append(process_images(pipe, x, *given, seeds[batch], sampling))
    start = pipe.decoder.draw_noise(seeds)
    return Output(as_array(torch.cat(drawn)), repeated, seeds, embeddings, start, sampling, pipe.origin)


def levels_below(decoder: CanDenoise, settings: DecoderSettings, strength: float) -> list[Level]:
    """The noise level that lies a share of the way to pure noise, then the settings' levels below it."""
    levels = SPACINGS[settings.spacing](decoder.process, settings.steps)
    if strength in (0, 1):  # the clean level alone; all
        return levels[-1:] if strength == 0 else levels
    start = decoder.process.level(decoder.process.time_at_share(strength))
    return [start, *(level for level in levels if level.t < start.t)]
