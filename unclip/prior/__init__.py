from unclip.prior.model import Prefix, Prior, PriorConfig
from unclip.prior.sample import draw_embeddings

__all__ = ["Prefix", "Prior", "PriorConfig", "draw_embeddings"]
