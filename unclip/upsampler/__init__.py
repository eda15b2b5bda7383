"""The upsampler: small images -> large images, by diffusion."""

from unclip.upsampler.diffusion_upsampler import DiffusionUpsampler, DiffusionUpsamplerConfig
from unclip.upsampler.model import UpsamplerConfig, UpsamplerNetwork

__all__ = ["DiffusionUpsampler", "DiffusionUpsamplerConfig", "UpsamplerConfig", "UpsamplerNetwork"]
