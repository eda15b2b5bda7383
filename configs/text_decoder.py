"""Presets of the decoder that reads text embeddings: those of the other, whose images it is compared with."""

from dataclasses import fields

from configs.decoder import PRESETS as DECODER_PRESETS
from stages.decoder import DecoderRun
from stages.text_decoder import TextDecoderRun

OTHER = ("kind", "drop_image", "drop_text", "embedding_noise")


def text_decoder_run(run: DecoderRun) -> TextDecoderRun:
    return TextDecoderRun(**{item.name: getattr(run, item.name) for item in fields(run) if item.name not in OTHER})


PRESETS = {name: text_decoder_run(run) for name, run in DECODER_PRESETS.items()}
