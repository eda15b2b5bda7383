"""The optimiser, its schedule, and the moving average of the weights."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def cosine_warmup(step: int, steps: int, warmup: int, floor: float = 0.0) -> float:
    """The factor on the learning rate at a step: linear warm-up, then half a cosine from 1 down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizers(
    model: nn.Module, lr: float, weight_decay: float, betas: tuple[float, float], muon_lr: float = 0.0
) -> list[torch.optim.Optimizer]:
    """AdamW (Loshchilov & Hutter 2017) for all parameters; with a `muon_lr` Muon for the matrices and convolutions.

    Vectors (norms, biases, tokens) and tables that are looked up (embeddings, positions) are not decayed: pulling them
    to zero regularises nothing. Nor are they Muon's: a table's rows are unrelated vectors, no linear map. Each
    parameter group keeps its peak learning rate in "peak".
    """
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    tables |= {id(p) for name, p in model.named_parameters() if name.endswith("positions")}
    matrices = [p for p in model.parameters() if p.ndim >= 2 and id(p) not in tables]
    rest = [p for p in model.parameters() if p.ndim < 2 or id(p) in tables]
    if muon_lr:
        groups = [{"params": rest, "weight_decay": 0.0}]
        optimizers = [Muon(matrices, muon_lr, weight_decay)]
    else:
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
        optimizers = []
    optimizers.append(torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True))
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["peak"] = group["lr"]
    return optimizers


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised: every direction of a matrix is learned at the same speed.

    Jordan et al. 2024; the step has the root mean square of AdamW's (Liu et al. 2025, arXiv 2502.16982, eq. 4).
    torch.optim.Muon computes in bfloat16, which a CPU emulates, and takes no convolutions; this one computes in float32
    and flattens their kernels.
    A weight three times as high as wide stacks queries, keys and values: each is orthogonalised by itself.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                update = weight.grad.lerp(state["momentum"], group["momentum"]).flatten(1)  # Nesterov's look ahead
                height, width = update.shape
                parts = 3 if height == 3 * width else 1
                update = torch.cat([orthogonalised(part) for part in update.chunk(parts)])
                rms = 0.2 * math.sqrt(max(height // parts, width))
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update.view_as(weight), alpha=-group["lr"] * rms)


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """About U V' of the singular value decomposition U S V' of a matrix: singular values between 0.7 and 1.2.

    Newton-Schulz iterations of the odd quintic polynomial of Jordan et al. 2024, which trades exactness for speed.
    """
    x = matrix / (matrix.norm() + 1e-7)
    x = x.T if x.shape[0] > x.shape[1] else x
    for _ in range(steps):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


@torch.no_grad()
def update_ema(average: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Move `average` towards `model`. Early on the decay is (1 + step) / (10 + step): the start is soon forgotten."""
    decay = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
