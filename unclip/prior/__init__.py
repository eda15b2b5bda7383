from unclip.prior.diffusion_prior import DiffusionPrior, DiffusionPriorConfig
from unclip.prior.model import Prefix, PriorConfig, PriorTransformer
from unclip.prior.reranking import Reranker

__all__ = ["DiffusionPrior", "DiffusionPriorConfig", "Prefix", "PriorConfig", "PriorTransformer", "Reranker"]
