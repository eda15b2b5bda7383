"""Figures that others report too: by the standard Inception weights, and by a CLIP of the user's choice.

Inception's features, their resize and the figures are torch-fidelity's own code, so that numbers can be compared.
"""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from stages.evaluation.metrics import frechet_distance, mean_with_interval
from stages.evaluation.section import EvaluationContext, Section
from unclip.clip import CLIP, encode_captions, load_clip
from unclip.clip.preprocess import Preprocess
from unclip.errors import UserError, reason

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
"""The file that torch-fidelity publishes on GitHub; pytorch-fid's differs in the names of its tensors."""
RESIZE = "299x299, as TensorFlow 1 resizes (torch-fidelity)"


def measure_with_standard_networks(context: EvaluationContext) -> Section:
    """Compare the pipeline's samples with the test images by the networks whose files the options name."""
    samples = context.pipeline_samples.images
    real = context.reference.data.images
    counts = {"samples": len(samples), "reference": f"{len(real)} images of {context.reference.data.name}"}
    figures: dict[str, Any] = {}
    if context.inception:
        figures["inception"] = inception_figures(samples, real, context.inception, context.pipe.device) | counts
    if context.clip_score:
        captions = [caption for caption in context.captions for _ in range(context.samples_per_caption)]
        figures["clip"] = clip_figures(samples, captions, real, context.clip_score, context.pipe.device) | counts
    return Section(figures)


def check_inception(weights: Path) -> None:
    """Raise UserError unless torch-fidelity can read these weights."""
    if importlib.util.find_spec("torch_fidelity") is None:
        raise UserError("--inception needs a package that is not installed: pip install torch-fidelity")
    if not weights.is_file():
        raise UserError(
            f"there is no file {weights}; --inception takes {INCEPTION_FILE}, which torch-fidelity publishes with its "
            "releases"
        )
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    try:
        FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights))
    except Exception as error:  # whatever unpickling may raise
        raise UserError(f"{weights} holds no Inception weights ({reason(error)}); expected {INCEPTION_FILE}") from error


def inception_figures(samples: np.ndarray, real: Tensor, weights: Path, device: torch.device) -> dict[str, Any]:
    """FID, KID, precision and recall of samples uint8 (N, H, W, C) and real images uint8 (M, C, H, W)."""
    from torch_fidelity import calculate_metrics

    # torch-fidelity takes data sets of colour images
    sample_set, real_set = (
        Subset(images.expand(-1, 3, -1, -1), range(len(images)))  # type: ignore[arg-type]
        for images in (torch.from_numpy(samples).permute(0, 3, 1, 2), real)
    )
    figures = calculate_metrics(
        input1=sample_set,
        input2=real_set,
        fid=True,
        kid=True,
        prc=True,
        feature_extractor="inception-v3-compat",
        feature_layer_prc="2048",
        kid_subset_size=min(1000, len(samples), len(real)),
        feature_extractor_weights_path=str(weights),
        cuda=device.type == "cuda",
        verbose=False,
        save_cpu_ram=True,
    )
    return {
        "FID": figures["frechet_inception_distance"],
        "KID": figures["kernel_inception_distance_mean"],
        "precision": figures["precision"],
        "recall": figures["recall"],
        "resize": RESIZE,
    }


def clip_figures(
    samples: np.ndarray, captions: list[str], real: Tensor, path: Path, device: torch.device
) -> dict[str, Any]:
    """The CLIP score of samples and captions, and the Frechet distance of samples and real images in CLIP's space.

    The score is 100 times the cosine, at least 0 (Hessel et al. 2021, arXiv 2104.08718, eq. 1, without its factor).
    """
    clip, tokenizer, preprocess = load_clip(path)
    if tokenizer is None:
        raise UserError(f"{path} comes without a tokenizer, which --clip-score needs")
    clip.to(device)
    images = embed_images(clip, preprocess, torch.from_numpy(samples).permute(0, 3, 1, 2))
    text = encode_captions(clip, tokenizer, captions).embedding.cpu()
    distance = frechet_distance(images.double(), embed_images(clip, preprocess, real).double())
    return {
        "CLIP score": mean_with_interval(100 * (images * text).sum(dim=1).clamp(min=0)),
        "Frechet distance": distance,
        "network": path.name,
    }


@torch.inference_mode()
def embed_images(clip: CLIP, preprocess: Preprocess, images: Tensor) -> Tensor:
    """Unit embeddings (N, D) of uint8 images (N, C, H, W), on the CPU."""
    device = clip.logit_scale.device
    channels = clip.config.vision.channels
    return torch.cat(
        [
            clip.encode_image(preprocess(part.expand(-1, channels, -1, -1)).to(device)).cpu()
            for part in images.split(100)
        ]
    )
