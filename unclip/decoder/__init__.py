from unclip.decoder.sample import draw_images
from unclip.decoder.unet import Decoder, DecoderConfig

__all__ = ["Decoder", "DecoderConfig", "draw_images"]
