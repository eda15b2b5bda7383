"""Watching the denoising, on the trained tiny pipeline."""

import numpy as np
import pytest
import torch
from samples import BAG, DRESS, assert_same_images, differ

from unclip.diffusion.spacing import karras_levels
from unclip.images import to_uint8
from unclip.trajectory import Moment, Trajectory, denoising_frames, denoising_strip

SETTINGS = {"steps": 15, "prior_steps": 4}


@pytest.mark.parametrize("sampler", ["dpmpp", "ddim", "ddpm"])
def test_every_step_is_told_from_noise_to_the_image(sampler, tiny):
    moments = []
    out = tiny([BAG, DRESS], n=2, sampler=sampler, on_step=moments.append, **SETTINGS)
    assert [(m.step, m.steps, m.samples) for m in moments] == [(i, 15, range(4)) for i in range(15)]
    assert [m.t for m in moments] == sorted({m.t for m in moments}, reverse=True)
    assert moments[0].t == karras_levels(tiny.decoder.process, 15)[0].t
    assert np.array_equal(moments[0].x, to_uint8(out.noise).permute(0, 2, 3, 1).numpy())
    assert {(m.x.dtype, m.x0.dtype, m.x.shape, m.x0.shape) for m in moments} == {
        (np.dtype(np.uint8), np.dtype(np.uint8), out.images.shape, out.images.shape)
    }
    assert np.array_equal(moments[-1].x0, out.images)
    assert differ(moments[0].x0, out.images)
    assert np.array_equal(tiny([BAG, DRESS], n=2, sampler=sampler, **SETTINGS).images, out.images)  # watched or not


def test_batches_are_told_one_after_the_other_with_their_rows(tiny):
    moments = []
    tiny([BAG, DRESS, ""], n=2, batch_size=4, steps=3, prior_steps=2, on_step=moments.append)
    assert [(m.samples, m.step) for m in moments] == [(rows, i) for rows in (range(4), range(4, 6)) for i in range(3)]
    assert [len(m.x) for m in moments] == [4] * 3 + [2] * 3


def test_a_trajectory_keeps_ten_moments_from_the_first_to_the_last(tiny):
    trajectory = Trajectory()
    moments = []
    out = tiny(BAG, n=2, on_step=lambda moment: (trajectory(moment), moments.append(moment)), **SETTINGS)
    assert trajectory.x.shape == trajectory.x0.shape == (10, *out.images.shape)
    recorded = [0, 2, 3, 5, 6, 8, 9, 11, 12, 14]
    assert np.array_equal(trajectory.x, [moments[i].x for i in recorded])
    assert np.array_equal(trajectory.x0, [moments[i].x0 for i in recorded])


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_a_trajectory_of_few_steps_keeps_them_all(steps, tiny):
    trajectory = Trajectory()
    out = tiny(BAG, steps=steps, prior_steps=2, on_step=trajectory)
    assert len(trajectory.x) == steps
    assert np.array_equal(trajectory.x0[-1], out.images)


def test_a_trajectory_of_some_samples_keeps_them_whatever_the_batches(tiny):
    """Several candidates make the decoder's batches smaller."""
    for size, candidates in ((64, 1), (2, 1), (4, 2)):
        trajectory = Trajectory(moments=4)
        few = SETTINGS | {"num_candidates": candidates, "batch_size": size}
        out = tiny([BAG, DRESS, ""], n=2, on_step=trajectory.of_samples([1, 4]), **few)
        assert trajectory.x.shape == (4, 2, 28, 28, 1)
        assert_same_images(trajectory.x0[-1], out.images[[1, 4]])


def test_a_trajectory_joins_the_rows_of_small_batches(tiny):
    whole, parts = Trajectory(moments=4), Trajectory(moments=4)
    tiny([BAG, DRESS, ""], n=2, on_step=whole, **SETTINGS)
    tiny([BAG, DRESS, ""], n=2, on_step=parts, batch_size=4, **SETTINGS)
    assert whole.x.shape == parts.x.shape == (4, 6, 28, 28, 1)
    for one, other in zip([*whole.x, *whole.x0], [*parts.x, *parts.x0], strict=True):
        assert_same_images(one, other)


def test_the_decoder_alone_is_watched_too(tiny):
    trajectory, noise = Trajectory(), torch.zeros(2, 1, 28, 28)
    images = tiny.decode(None, [BAG, DRESS], noise=noise, on_step=trajectory, steps=4)
    assert (trajectory.x[0] == 128).all()
    assert np.array_equal(trajectory.x0[-1], images)


def made_up(samples: int, moments: int) -> Trajectory:
    """State s of sample i is a grey of 10 i + s, its prediction one of 100 more."""
    trajectory = Trajectory()
    for step in range(moments):
        x = np.stack([np.full((28, 28, 1), 10 * i + step, np.uint8) for i in range(samples)])
        trajectory(Moment(range(samples), step, moments, moments - step, x, x + 100))
    return trajectory


def grey(picture, row: int, column: int) -> int:
    return np.asarray(picture)[4 + 88 * row + 40, 200 + 88 * column + 40, 0].item()


def test_the_strip_shows_each_caption_s_first_sample_above_its_prediction():
    strip = denoising_strip([BAG, BAG, DRESS, DRESS], made_up(samples=4, moments=5), n=2)
    want = [[10 * i + s + plus for s in range(5)] for i in (0, 2) for plus in (0, 100)]
    assert [[grey(strip, row, column) for column in range(5)] for row in range(4)] == want


def test_the_animation_shows_all_samples_and_ends_with_the_prediction():
    frames = denoising_frames([BAG, BAG, DRESS, DRESS], made_up(samples=4, moments=5), n=2)
    assert len(frames) == 6
    for s, plus in [(0, 0), (3, 0), (4, 100)]:
        shown = frames[-1] if plus else frames[s]
        assert [grey(shown, i, j) for i in (0, 1) for j in (0, 1)] == [s + plus + 10 * i for i in range(4)]
