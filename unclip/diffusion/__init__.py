from unclip.diffusion.gaussian import GaussianDiffusion

__all__ = ["GaussianDiffusion"]
