"""The evaluation of an upsampler: its metrics, and its section."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from three_stages import seeded

from stages.evaluation.image_metrics import edge_strength, psnr, ssim
from stages.evaluation.judge import Classifier, JudgeConfig, Matcher, judge_images, judge_levels
from stages.evaluation.metrics import frechet_distance
from stages.evaluation.samples import Samples
from stages.evaluation.section import LargeImages
from stages.evaluation.upsampling import NOISE, lanczos, measure_upsampling
from unclip.images import to_float
from unclip.settings import UpsamplerSettings
from unclip.upsampler.resizing import resize


def test_psnr_is_that_of_a_known_error():
    real = torch.zeros(2, 3, 8, 8)
    assert psnr(real + 0.2, real) == pytest.approx([20, 20], abs=1e-4)  # 10 log10(2^2 / 0.2^2)


def test_ssim_of_flat_and_of_equal_images():
    real = torch.rand(2, 3, 32, 32, generator=seeded())
    assert ssim(real, real) == pytest.approx([1, 1], abs=1e-5)
    flat = torch.full((1, 1, 16, 16), 0.5)
    expected = (2 * 0.5 * 0.25 + 4e-4) / (0.5**2 + 0.25**2 + 4e-4)  # only the luminance differs
    assert ssim(flat / 2, flat).item() == pytest.approx(expected, rel=1e-4)


def test_ssim_equals_the_formula_in_one_window():
    a, b = torch.rand(2, 1, 1, 11, 11, generator=seeded(), dtype=torch.float64)
    places = torch.arange(11, dtype=torch.float64) - 5
    weights = torch.exp(-0.5 * (places / 1.5) ** 2)
    weights = torch.outer(weights, weights) / weights.sum() ** 2

    def mean(x):
        return (weights * x).sum().item()

    mean_a, mean_b = mean(a), mean(b)
    covariance = mean(a * b) - mean_a * mean_b
    variances = mean(a * a) - mean_a**2 + mean(b * b) - mean_b**2
    expected = (2 * mean_a * mean_b + 4e-4) * (2 * covariance + 36e-4)
    expected /= (mean_a**2 + mean_b**2 + 4e-4) * (variances + 36e-4)
    assert ssim(a, b).item() == pytest.approx(expected, rel=1e-6)


def test_edges_are_the_length_of_the_gradient():
    ramp = 0.3 * torch.arange(8.0)[:, None] + 0.4 * torch.arange(8.0)
    assert edge_strength(ramp[None, None]).item() == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("judge", [Classifier, Matcher])
def test_the_last_level_of_a_judge_is_what_its_features_are_the_mean_of(judge):
    model = judge(JudgeConfig(classes=8, channels=3, width=8)).eval()
    if judge is Matcher:
        model.choose_among(["a", "b"])
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8, generator=seeded())
    levels = judge_levels(model, images)
    assert [level.shape[1:] for level in levels] == [(8, 16, 16), (16, 8, 8), (32, 4, 4)]
    torch.testing.assert_close(levels[-1].mean(dim=(2, 3)), judge_images(model, images)[1])


class SharpUpsampler:
    """Returns bicubic images to which it adds what it has been given as missing: a stand-in that knows the answer."""

    def __init__(self, real):
        self.real = to_float(real)

    def process_images(self, images, embeddings, text, seeds, settings):
        bicubic = resize(images, 32, 32).clamp(-1, 1)
        real = self.real[[seed % len(self.real) for seed in seeds]]
        return bicubic + (real - bicubic) * (1 - 2 * settings.upscale_noise)


class Data:
    image_size = 16
    captions = ("a", "b")
    class_captions = captions

    def draw(self, rows, generator, **options):
        return rows % 2


def test_an_upsampler_is_measured_beside_bicubic_images_and_its_noise_is_swept():
    generator = seeded()
    real = (torch.rand(20, 3, 32, 32, generator=generator) * 255).byte()
    train = SimpleNamespace(images=(torch.rand(40, 3, 32, 32, generator=generator) * 255).byte())
    drawn = np.asarray(resize(real.float(), 16, 16).clamp(0, 255).byte().permute(0, 2, 3, 1))
    torch.manual_seed(0)
    judge = Classifier(JudgeConfig(classes=4, channels=3, width=8)).eval()
    pipe = SimpleNamespace(
        image_parts={"upsampler": SharpUpsampler(real)},
        device=torch.device("cpu"),
        sampling=SimpleNamespace(upsampler=UpsamplerSettings("none", upscale_noise=0.05)),
    )
    context = SimpleNamespace(
        pipe=pipe,
        large=LargeImages(SimpleNamespace(images=real), train),
        reference=SimpleNamespace(judge=judge, data=Data()),
        embedded_test=SimpleNamespace(embeddings=torch.zeros(20, 4)),
        pipeline_samples=Samples(drawn, torch.zeros(20, 4)),
        captions=Data.captions,
        samples_per_caption=10,
        seed=0,
    )
    section = measure_upsampling(context)
    figures = section.figures
    compared = figures["real images, made small and enlarged again"]
    assert compared["upsampler"]["psnr"]["value"] > compared["bicubic"]["psnr"]["value"] + 10
    assert compared["upsampler"]["edges"] == pytest.approx(1, abs=0.15) != compared["bicubic"]["edges"]
    assert 0 < figures["share of bicubic's"]["feature_distance"] < 0.5
    expected = frechet_distance(judge_images(judge, real)[1], judge_images(judge, train.images)[1])
    assert compared["real"]["frechet"] == pytest.approx(expected)
    distances = figures["Frechet distance of the decoder's images, enlarged"]
    assert list(distances) == ["bicubic", *(f"noise {noise:g}" for noise in NOISE)]
    assert distances["noise 0.01"] < distances[f"noise {NOISE[-1]:g}"]
    assert set(section.pictures) == {"upsampling", "upsampling-noise"}
    assert math.isfinite(figures["seconds per image"])


def test_lanczos_is_pillow_s_and_keeps_grey_images():
    small = torch.randint(256, (2, 1, 8, 8), dtype=torch.uint8, generator=seeded())
    assert lanczos(small, 32).shape == (2, 1, 32, 32)
