"""Networks with weights at random, and how their outputs are compared."""

import torch
from torch import nn


def randomise(module: nn.Module) -> nn.Module:
    """Fill every parameter, so that nothing that matters hides behind a zero."""
    torch.manual_seed(0)
    for name, parameter in module.named_parameters():
        nn.init.normal_(parameter, std=0.2 if parameter.ndim < 2 else parameter[0].numel() ** -0.5)
        if "norm" in name and name.endswith("weight"):
            nn.init.normal_(parameter, mean=1.0, std=0.2)
    return module.eval()


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-5)


def differ(one, other) -> bool:
    """Every row differs."""
    return (one - other).abs().flatten(1).amax(dim=1).min().item() > 1e-3
