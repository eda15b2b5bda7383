"""The upsampler: its resizing, its locality and tiles, its training on crops, and its place in a pipeline."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from three_stages import seeded

from stages import train
from stages.upsampler import cut, gaussian_blur
from unclip import UnCLIP
from unclip.errors import UserError
from unclip.settings import UpsamplerSettings
from unclip.store.manifest import read_manifest
from unclip.upsampler import DiffusionUpsampler, DiffusionUpsamplerConfig, UpsamplerConfig
from unclip.upsampler.model import LOCAL_UNET
from unclip.upsampler.resizing import resize
from unclip.upsampler.tiles import in_tiles

SMALL = replace(LOCAL_UNET, width=8, multipliers=(1, 2))


@pytest.fixture(scope="module")
def upsampler() -> DiffusionUpsampler:
    """An upsampler by a factor of 2 whose weights are all random, so that it changes images."""
    torch.manual_seed(0)
    network = UpsamplerConfig(SMALL, factor=2, channels=3, low_size=16)
    model = DiffusionUpsampler(DiffusionUpsamplerConfig(network)).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.2)
    return model


def random_images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=seeded()) * 2 - 1


@pytest.mark.parametrize("size", [(8, 8), (64, 64), (13, 30)])
def test_images_are_resized_as_pillow_does(size):
    pixels = torch.randint(256, (20, 24), generator=seeded(), dtype=torch.uint8)
    expected = Image.fromarray(pixels.numpy().astype(np.float32)).resize(size[::-1], Image.Resampling.BICUBIC)
    resized = resize(pixels.float()[None, None], *size)[0, 0]
    torch.testing.assert_close(resized, torch.from_numpy(np.array(expected)), rtol=0, atol=1e-2)


def test_a_pixel_of_the_output_reads_no_further_than_the_reach(upsampler):
    unet = upsampler.config.network.unet
    x = torch.zeros(1, 3, 160, 160, requires_grad=True)
    time = torch.zeros(1)
    output = upsampler.network(x, time, torch.zeros_like(x), time)
    output[0, 0, 80, 81].backward()
    rows, columns = x.grad[0].abs().sum(dim=0).nonzero().T
    distance = max((rows - 80).abs().max().item(), (columns - 81).abs().max().item())
    assert unet.reach // 2 < distance <= unet.reach


@pytest.mark.parametrize(("height", "width", "tile"), [(48, 48, 16), (70, 45, 32), (33, 90, 24), (40, 40, 64)])
def test_tiles_give_the_whole_image(upsampler, height, width, tile):
    unet = upsampler.config.network.unet
    images = random_images(2, 6, height, width)
    calls = []

    def network(x):
        calls.append(x.shape)
        return upsampler.network(x[:, :3], torch.zeros(2), x[:, 3:], torch.zeros(2))

    tiled = in_tiles(network, tile, unet.reach, unet.stride)(images)
    assert (len(calls) > 1) == (max(height, width) > tile)
    torch.testing.assert_close(tiled, network(images), rtol=1e-4, atol=1e-4)


def test_an_image_depends_on_its_own_seed_and_not_on_tiles(upsampler):
    settings = UpsamplerSettings(upscale_steps=2)
    images = random_images(3, 3, 30, 30)
    together = upsampler.process_images(images, None, None, [4, 5, 6], settings)
    assert together.shape == (3, 3, 60, 60)
    alone = upsampler.process_images(images[1:2], None, None, [5], settings)
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-4)
    tiled = upsampler.process_images(images, None, None, [4, 5, 6], replace(settings, upscale_tile=16))
    torch.testing.assert_close(together, tiled, rtol=0, atol=1e-3)
    assert not torch.equal(together, upsampler.process_images(images, None, None, [5, 5, 6], settings))
    assert torch.equal(images, upsampler.process_images(images, None, None, [4, 5, 6], UpsamplerSettings("none")))


def test_crops_are_parts_of_the_whole():
    images = torch.arange(2 * 3 * 8 * 8).view(2, 3, 8, 8)
    parts = cut(images, torch.tensor([[1, 2], [4, 0]]), 4)
    assert torch.equal(parts[0], images[0, :, 1:5, 2:6])
    assert torch.equal(parts[1], images[1, :, 4:8, 0:4])


def test_blur_keeps_flat_images_and_spreads_points():
    assert torch.allclose(gaussian_blur(torch.full((1, 3, 9, 9), 0.3), 0.8), torch.tensor(0.3))
    point = torch.zeros(1, 1, 21, 21)
    point[..., 10, 10] = 1
    blurred = gaussian_blur(point, 1.5)[0, 0]
    places = torch.arange(21.0) - 10
    assert blurred.sum().item() == pytest.approx(1)
    assert (blurred.sum(dim=0) * places.square()).sum().sqrt().item() == pytest.approx(1.5, rel=0.03)


@pytest.fixture(scope="module")
def with_upsampler(tmp_path_factory):
    """The committed emoji pipeline with another upsampler, trained for a few steps by the ordinary program."""
    folder = tmp_path_factory.mktemp("upsampler") / "emoji"
    shutil.copytree(ROOT / "checkpoints" / "emoji", folder, ignore=shutil.ignore_patterns("upsampler"))
    options = ("--data.limit", "40", "--train.steps", "3", "--train.evaluate-every", "3", "--model.factor", "2")
    train.main(["upsampler", "--preset", "tiny", *options, "--out", str(folder)])
    return folder


def test_a_pipeline_with_an_upsampler_draws_large_images(with_upsampler):
    manifest = read_manifest(with_upsampler / "upsampler")
    assert manifest.model["network"]["low_size"] == 32
    assert manifest.provenance["size"] == 64
    assert set(manifest.figures) == {"loss", "psnr", "psnr_bicubic"}
    assert manifest.figures["psnr_bicubic"] > 20
    pipe = UnCLIP.from_pretrained(with_upsampler)
    settings = {"n": 2, "steps": 2, "prior_steps": 2}
    assert pipe("red heart", **settings).images.shape == (2, 64, 64, 3)
    committed = UnCLIP.from_pretrained(ROOT / "checkpoints" / "emoji")
    plain = committed("red heart", upscale="none", **settings)
    assert np.array_equal(pipe("red heart", upscale="none", **settings).images, plain.images)


def test_another_size_than_the_factor_s_is_refused(with_upsampler):
    with pytest.raises(UserError, match="trained on images of 128x128, not 96"):
        train.main(["upsampler", "--data.size", "96", "--model.factor", "4", "--out", str(with_upsampler)])
