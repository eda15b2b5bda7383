"""Figures by the standard Inception weights and by a named CLIP, against the packages that others take them with."""

import numpy as np
import pytest
import torch
from foreign import open_clip_files, small_open_clip
from PIL import Image
from three_stages import seeded
from torch import nn
from torch_fidelity import calculate_metrics
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from stages.evaluation.standard_networks import check_inception, clip_figures, embed_images, inception_figures
from unclip.clip import load_clip
from unclip.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights in the form of the standard file."""
    torch.manual_seed(0)
    network = type("Unloaded", (FeatureExtractorInceptionV3,), {"load_state_dict": lambda *_: None})
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "load", lambda *_, **__: {})
        model = network("any", ["2048"], feature_extractor_weights_path="any")
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    torch.save(nn.Module.state_dict(model), path)
    return path


def test_figures_are_those_of_torch_fidelity_on_the_same_files(weights, tmp_path):
    pixels = torch.randint(256, (2, 5, 1, 28, 28), dtype=torch.uint8, generator=seeded())
    pixels[0] //= 2
    for name, images in zip(("samples", "real"), pixels, strict=True):
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image[0].numpy()).convert("RGB").save(tmp_path / name / f"{i}.png")
    figures = inception_figures(pixels[0].permute(0, 2, 3, 1).numpy(), pixels[1], weights, CPU)
    expected = calculate_metrics(
        input1=str(tmp_path / "samples"), input2=str(tmp_path / "real"), fid=True, kid=True, prc=True,
        feature_extractor="inception-v3-compat", feature_layer_prc="2048", kid_subset_size=5,
        feature_extractor_weights_path=str(weights), cuda=False, verbose=False, cache=False,
        save_cpu_ram=True,
    )  # fmt: skip
    assert figures["FID"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-3)
    assert figures["KID"] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-3)
    assert (figures["precision"], figures["recall"]) == (expected["precision"], expected["recall"])


def test_a_file_that_is_missing_or_of_another_network_is_refused_before_anything_is_drawn(tmp_path):
    with pytest.raises(UserError, match=r"there is no file .*none\.pth; --inception takes weights-inception"):
        check_inception(tmp_path / "none.pth")
    torch.save({"fc.weight": torch.zeros(2, 3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="holds no Inception weights"):
        check_inception(tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(UserError, match="holds no Inception weights"):
        check_inception(tmp_path / "text.pth")


def test_clip_score_is_that_of_open_clip_itself(tmp_path):
    model = open_clip_files(tmp_path, small_open_clip())
    clip, tokenizer, preprocess = load_clip(tmp_path)
    samples = np.random.default_rng(0).integers(0, 256, (4, 20, 20, 3), dtype=np.uint8)
    real = torch.randint(256, (6, 3, 20, 20), dtype=torch.uint8, generator=seeded())
    captions = ["a bag", "a coat", "a bag", "a shoe"]
    figures = clip_figures(samples, captions, real, tmp_path, CPU)
    pixels = preprocess(torch.from_numpy(samples).permute(0, 3, 1, 2))
    with torch.no_grad():
        images = model.encode_image(pixels, normalize=True)
        token_ids = tokenizer.encode(captions, clip.config.text.context)
        token_ids = nn.functional.pad(token_ids, (0, 20 - token_ids.shape[1]), value=int(token_ids[0, -1]))
        text = model.encode_text(token_ids, normalize=True)
    expected = 100 * (images * text).sum(dim=1).clamp(min=0).mean().item()
    assert figures["CLIP score"]["value"] == pytest.approx(expected, abs=1e-3)
    torch.testing.assert_close(embed_images(clip, preprocess, torch.from_numpy(samples).permute(0, 3, 1, 2)), images)
    assert figures["Frechet distance"] > 0
