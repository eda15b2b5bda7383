"""Run a model on meta tensors, which have shapes and no memory, as it would run on a CPU or on an accelerator."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

READ_DEVICE = Tensor.device.__get__

NARROW = {
    "__matmul__", "addbmm", "addmm", "addmv", "baddbmm", "bmm", "conv1d", "conv2d", "conv3d", "conv_transpose1d",
    "conv_transpose2d", "conv_transpose3d", "einsum", "linear", "matmul", "mm", "mv", "scaled_dot_product_attention",
}  # fmt: skip
WIDE = {
    "__pow__", "binary_cross_entropy_with_logits", "cosine_similarity", "cross_entropy", "cumprod", "cumsum", "exp",
    "expm1", "group_norm", "huber_loss", "kl_div", "l1_loss", "layer_norm", "log", "log1p", "log2", "log_softmax",
    "logsumexp", "mse_loss", "nll_loss", "norm", "normalize", "pow", "prod", "reciprocal", "rsqrt", "smooth_l1_loss",
    "softmax", "softplus", "sum",
}  # fmt: skip
"""Functions that autocast computes in bfloat16, and in float32 (pytorch.org/docs/stable/amp.html, CUDA)."""


class PretendedDevice(TorchFunctionMode):
    """Let meta tensors report another type of device, and compute as that device does.

    Their `device` is the pretended one, and what is created on it is a meta tensor. Attention takes a fused kernel, as
    PyTorch chooses on such devices. With bfloat16, functions cast their arguments as autocast does; PyTorch's own
    autocast knows no meta tensors, but `torch.autocast(..., enabled=False)` is obeyed.
    """

    def __init__(self, device: str, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.device = torch.device(device)
        self.dtype = dtype
        self.casts: dict[int, Tensor] = {}
        """Weights in the narrow type by their id: autocast casts each once."""

    def __enter__(self):
        self.autocast_before = torch.is_autocast_enabled(self.device.type)
        torch.set_autocast_enabled(self.device.type, self.dtype != torch.float32)
        return super().__enter__()

    def __exit__(self, *error):
        torch.set_autocast_enabled(self.device.type, self.autocast_before)
        self.casts.clear()
        return super().__exit__(*error)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function == READ_DEVICE:
            return self.device
        args = tuple(self._on_meta(value) for value in args)
        kwargs = {name: self._on_meta(value) for name, value in (kwargs or {}).items()}
        name = getattr(function, "__name__", "")
        if torch.is_autocast_enabled(self.device.type) and (name in NARROW or name in WIDE):
            dtype = self.dtype if name in NARROW else torch.float32
            args = tuple(self._cast(value, dtype) for value in args)
            kwargs = {key: self._cast(value, dtype) for key, value in kwargs.items()}
        if name == "scaled_dot_product_attention":
            return attend_by_fused_kernel(*args, **kwargs)
        return function(*args, **kwargs)

    def _on_meta(self, value: Any) -> Any:
        return torch.device("meta") if isinstance(value, torch.device) else value

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if not isinstance(value, nn.Parameter):
            return value.to(dtype)
        if id(value) not in self.casts:
            self.casts[id(value)] = value.to(dtype)
        return self.casts[id(value)]


def attend_by_fused_kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """F.scaled_dot_product_attention by the memory-efficient kernel, which keeps no probabilities."""
    bias = attn_mask
    if bias is not None:
        if bias.dtype == torch.bool:
            bias = q.new_zeros(bias.shape).masked_fill(~bias, -torch.inf)
        bias = bias.expand(*q.shape[:-1], k.shape[-2])
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention
    output, *_ = kernel(q, k, v, bias, True, dropout_p, is_causal, scale=scale)
    return output
