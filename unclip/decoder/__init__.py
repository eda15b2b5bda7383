from unclip.decoder.diffusion_decoder import DiffusionDecoder, DiffusionDecoderConfig
from unclip.decoder.model import DecoderConfig, DecoderNetwork
from unclip.decoder.unet import UNet, UNetConfig

__all__ = ["DecoderConfig", "DecoderNetwork", "DiffusionDecoder", "DiffusionDecoderConfig", "UNet", "UNetConfig"]
