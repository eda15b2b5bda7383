"""The diffusion process, its samplers and guidance. They know no model and take any trailing shape."""

from unclip.diffusion.gaussian import GaussianDiffusion
from unclip.diffusion.guidance import guided, on_interval, watch
from unclip.diffusion.inpainting import ddpm_inpaint
from unclip.diffusion.inversion import ddim_invert
from unclip.diffusion.noise import RowNoise
from unclip.diffusion.prediction import at_level, make_denoiser
from unclip.diffusion.process import CLEAN, Level, Process, ProcessConfig, StraightPath, VariancePreserving
from unclip.diffusion.samplers import Denoised, ddim, ddpm, dpmpp
from unclip.diffusion.spacing import even_levels, karras_levels

__all__ = [
    "CLEAN",
    "Denoised",
    "GaussianDiffusion",
    "Level",
    "Process",
    "ProcessConfig",
    "RowNoise",
    "StraightPath",
    "VariancePreserving",
    "at_level",
    "ddim",
    "ddim_invert",
    "ddpm",
    "ddpm_inpaint",
    "dpmpp",
    "even_levels",
    "guided",
    "karras_levels",
    "make_denoiser",
    "on_interval",
    "watch",
]
