from unclip.prior.model import Prior, PriorConfig
from unclip.prior.sample import draw_embeddings

__all__ = ["Prior", "PriorConfig", "draw_embeddings"]
