from unclip.decoder.model import Decoder, DecoderConfig
from unclip.decoder.unet import UNet, UNetConfig

__all__ = ["Decoder", "DecoderConfig", "UNet", "UNetConfig"]
