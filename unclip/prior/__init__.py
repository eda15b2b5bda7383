from unclip.prior.model import Prefix, Prior, PriorConfig

__all__ = ["Prefix", "Prior", "PriorConfig"]
