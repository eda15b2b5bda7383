"""Noise, noise levels, samplers and reranking without PyTorch, against the pipeline's."""

import numpy as np
import pytest
import torch

from unclip.decoder.consistency_decoder import consistency_levels
from unclip.diffusion import noise as torch_noise
from unclip.diffusion import samplers as torch_samplers
from unclip.diffusion.process import StraightPath, VariancePreserving
from unclip.diffusion.spacing import SPACINGS
from unclip.lite.levels import Process
from unclip.lite.noise import RowNoise
from unclip.lite.reranking import choose_candidates, image_probabilities
from unclip.lite.samplers import SAMPLERS
from unclip.prior.reranking import Reranker
from unclip.settings import FastDecoderSettings


@pytest.mark.parametrize("count", [16, 17, 100, 128, 784, 3072])
def test_noise_is_that_of_pytorch(count):
    seeds = [*range(150), 2**32 - 1, 2**40 + 3, 2**62]
    for stream in ((1, 0), (2,)):
        ours, theirs = RowNoise(seeds, *stream), torch_noise.RowNoise(seeds, *stream)
        for _ in range(2):  # a second call goes on where the first ended
            expected = theirs(torch.empty(len(seeds), count)).numpy()
            np.testing.assert_allclose(ours((count,)), expected, rtol=0, atol=2e-6)


def test_fewer_numbers_than_a_group_are_refused():
    with pytest.raises(ValueError, match="at least 16"):
        RowNoise([0])((15,))


@pytest.mark.parametrize("process", [VariancePreserving(), VariancePreserving(40, "linear"), StraightPath()])
@pytest.mark.parametrize("steps", [1, 2, 7, 20])
def test_levels_are_those_of_the_pipeline(process, steps):
    table = getattr(process, "alphas_cumprod", None)
    ours = Process(None if table is None else table.numpy())
    for spacing, levels_of in SPACINGS.items():
        check_levels(ours.spaced_levels(spacing, steps), levels_of(process, steps), process)
    settings = FastDecoderSettings(min(steps, 16))
    check_levels(ours.consistency_levels(settings), consistency_levels(process, settings), process)


def check_levels(ours, theirs, process):
    np.testing.assert_allclose([level[:3] for level in ours], theirs, rtol=1e-12, atol=1e-12)
    told = [process.network_time(level.t) for level in theirs[:-1]]
    np.testing.assert_allclose([level.network_time for level in ours[:-1]], told, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_samplers_are_those_of_the_pipeline(name, spacing):
    levels = SPACINGS[spacing](VariancePreserving(), 8)
    options = {"eta": 0.7} if name == "ddim" else {}
    start = np.random.default_rng(0).standard_normal((3, 20)).astype(np.float32)

    def shrink(x, level):
        return x * (0.5 * level.alpha / (0.5 * level.alpha**2 + level.sigma**2))

    expected = getattr(torch_samplers, name)(
        lambda x, level: torch_samplers.Denoised(shrink(x, level)), torch.from_numpy(start), levels,
        torch_noise.RowNoise([1, 2, 3]), **options,
    )  # fmt: skip
    ours = SAMPLERS[name](shrink, start, levels, RowNoise([1, 2, 3]), **options)
    np.testing.assert_allclose(ours, expected.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("classes", [0, 5])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.9, 1.0])
def test_candidates_are_chosen_as_the_pipeline_chooses(classes, threshold):
    torch.manual_seed(classes)
    reranker = Reranker(12, classes)
    text = torch.nn.functional.normalize(torch.randn(40, 12), dim=1)
    if classes:
        reranker.fit(text[:classes], 9.0)
    candidates = torch.nn.functional.normalize(torch.randn(40, 4, 12) + 2 * text[:, None], dim=2)
    expected = reranker(candidates, text, threshold)
    ours = choose_candidates(candidates.numpy(), text.numpy(), text[:classes].numpy(), 9.0, threshold)
    assert ours.tolist() == expected.tolist()
    empty = torch.arange(40) == 7
    expected = reranker.image_probabilities(candidates[:, 0], text, empty)
    inputs = (candidates[:, 0].numpy(), text.numpy(), empty.numpy(), text[:classes].numpy(), 9.0)
    np.testing.assert_allclose(image_probabilities(*inputs), expected.numpy(), rtol=1e-4)
