"""The optimiser, its schedule, and the moving average of the weights."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from stages.runtime import fast_bfloat16
from stages.sharding import alike, whole
from unclip.layers import StackedLinear


def cosine_warmup(step: int, steps: int, warmup: int) -> float:
    """The factor on the learning rate at a step: linear warm-up, then half a cosine from 1 down to 0."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizers(
    model: nn.Module, lr: float, weight_decay: float, betas: tuple[float, float], muon_lr: float = 0.0
) -> list[torch.optim.Optimizer]:
    """AdamW (Loshchilov & Hutter 2017) for all parameters; with a `muon_lr` Muon for the matrices and convolutions.

    Vectors (norms, biases, tokens) and tables that are looked up (embeddings, positions) are not decayed: pulling them
    to zero regularises nothing. Nor are they Muon's: a table's rows are unrelated vectors, no linear map. Each
    parameter group keeps its peak learning rate in "peak". After each step modules that have bounds keep them.
    """
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    tables |= {id(p) for name, p in model.named_parameters() if name.endswith("positions")}
    matrices = [p for p in model.parameters() if p.ndim >= 2 and id(p) not in tables]
    rest = [p for p in model.parameters() if p.ndim < 2 or id(p) in tables]
    if muon_lr:
        groups = [{"params": rest, "weight_decay": 0.0}]
        stacks = {id(m.weight): m.stacks for m in model.modules() if isinstance(m, StackedLinear)}
        optimizers = [Muon(matrices, muon_lr, weight_decay, stacks=[stacks.get(id(p), 1) for p in matrices])]
    else:
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
        optimizers = []
    optimizers.append(torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True))
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["peak"] = group["lr"]
    for module in model.modules():
        if hasattr(module, "keep_in_bounds"):
            optimizers[-1].register_step_post_hook(lambda *_, module=module: module.keep_in_bounds())
    return optimizers


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised: every direction of a matrix is learned at the same speed.

    Jordan et al. 2024; the step has the root mean square of AdamW's (Liu et al. 2025, arXiv 2502.16982, eq. 4).
    torch.optim.Muon computes in bfloat16, which a CPU emulates, and takes no convolutions; this one computes in float32
    and flattens their kernels. Maps that a weight stacks, such as queries, keys and values, are orthogonalised each by
    itself; `stacks` says how many there are in each parameter. Where weights are sharded, each rank
    orthogonalises the whole matrix, as a part would give another result, and keeps its rows of the step.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        stacks: Sequence[int] = (),
    ):
        params = list(params)
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.stacks = dict(zip(params, stacks or [1] * len(params), strict=True))

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            updates = zip(weights, self._momentum(weights, group["momentum"]), strict=True)
            parts = [part for weight, update in updates for part in update.flatten(1).chunk(self.stacks[weight])]
            by_shape = defaultdict(list)
            for i, part in enumerate(parts):
                by_shape[part.shape].append(i)
            for (height, width), rows in by_shape.items():  # all of one shape at once: few calls, each worth its while
                steps = orthogonalised(torch.stack([parts[i] for i in rows])) * 0.2 * math.sqrt(max(height, width))
                for i, step in zip(rows, steps, strict=True):
                    parts[i] = step
            remaining = iter(parts)
            steps = [torch.cat([next(remaining) for _ in range(self.stacks[w])]).view_as(w) for w in weights]
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(weights, [*map(alike, steps, weights)], alpha=-group["lr"])

    def _momentum(self, weights: list[nn.Parameter], momentum: float) -> list[Tensor]:
        """The momentum with Nesterov's look ahead, of the whole weights."""
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(weight)
        gradients = [weight.grad for weight in weights]
        moments = [self.state[weight]["momentum"] for weight in weights]
        torch._foreach_lerp_(moments, gradients, 1 - momentum)
        return [whole(update) for update in torch._foreach_lerp(gradients, moments, momentum)]


def orthogonalised(matrices: Tensor, steps: int = 5) -> Tensor:
    """About U V' of the singular value decomposition U S V' of matrices (K, N, M): singular values in 0.7 .. 1.2.

    Newton-Schulz iterations of the odd quintic polynomial of Jordan et al. 2024, which trades exactness for speed.
    """
    fast = matrices.dtype == torch.float32 and fast_bfloat16(matrices.device)  # as exact as is wanted
    x = matrices.bfloat16() if fast else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    x = x.mT if x.shape[1] > x.shape[2] else x
    for _ in range(steps):
        square = x @ x.mT
        polynomial = torch.baddbmm(square, square, square, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, polynomial, x, beta=3.4445)
    return (x.mT if matrices.shape[1] > matrices.shape[2] else x).to(matrices.dtype)


@torch.no_grad()
def update_ema(average: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Move `average` towards `model`. Early on the decay is (1 + step) / (10 + step): the start is soon forgotten."""
    decay = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
