"""The standard Frechet inception distance (FID), where its network is at hand."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset


def inception_fid(samples: np.ndarray, real: Tensor, device: torch.device) -> dict[str, Any]:
    """Compute the FID of samples uint8 (N, H, W, C) and real images uint8 (M, C, H, W) by torch-fidelity.

    Nothing is downloaded: without torch-fidelity, or without its Inception weights on this machine, {"missing": reason}
    is returned.
    """
    try:
        from torch_fidelity import calculate_metrics
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
    except ImportError:
        return {"missing": "torch-fidelity is not installed"}
    weights = Path(torch.hub.get_dir()) / "checkpoints" / Path(URL_INCEPTION_V3).name
    if not weights.is_file():
        return {"missing": f"torch-fidelity's weights, {weights.name}, are not in PyTorch's cache"}
    # torch-fidelity takes data sets of colour images only
    sample_set, real_set = (
        Subset(images.expand(-1, 3, -1, -1), range(len(images)))
        for images in (torch.from_numpy(samples).permute(0, 3, 1, 2), real)
    )
    figures = calculate_metrics(
        input1=sample_set,
        input2=real_set,
        fid=True,
        cuda=device.type == "cuda",
        verbose=False,
        save_cpu_ram=True,
    )
    return {"value": figures["frechet_inception_distance"], "n": len(samples)}
