"""Networks stand alone: what importing one needs, and how it goes with samplers and networks of other projects."""

import ast
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from networks import randomise

from unclip.decoder import DecoderConfig, DecoderNetwork, UNetConfig
from unclip.diffusion import VariancePreserving, at_level, ddim, ddpm, dpmpp, even_levels, karras_levels, make_denoiser

diffusers = pytest.importorskip("diffusers")


def module_file(name: str) -> Path | None:
    """The file of a module of this project; None for other modules, and for what is no module."""
    path = ROOT / name.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def first_party_imports(file: Path) -> set[Path]:
    """The project's files that a file imports when it is imported itself; faces of packages aside."""
    files = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        files |= {path for name in names if name.startswith("unclip") and (path := module_file(name))}
    return files


@pytest.mark.parametrize(
    ("network", "most"), [("unclip/decoder/model.py", 6), ("unclip/prior/model.py", 5), ("unclip/clip/model.py", 7)]
)
def test_a_network_needs_few_files_and_no_sampler(network, most):
    closure, waiting = set(), {ROOT / network}
    while waiting:
        closure |= waiting
        waiting = set().union(*map(first_party_imports, waiting)) - closure
    files = sorted(str(path.relative_to(ROOT)) for path in closure if path.name != "__init__.py")
    assert len(files) <= most, files
    assert not [file for file in files if file.startswith(("unclip/diffusion/", "unclip/settings", "unclip/registry"))]


@pytest.mark.parametrize("sampler", [ddpm, ddim, dpmpp])
def test_our_samplers_draw_with_somebody_else_s_network(sampler):
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    process = VariancePreserving(1000, "linear")
    denoise = make_denoiser(at_level(lambda x, time: unet(x, time).sample, process), "eps", clip_x0=1.0)
    with torch.inference_mode():
        images = sampler(denoise, torch.randn(2, 1, 8, 8), karras_levels(process, 5))
    assert images.shape == (2, 1, 8, 8)
    assert images.abs().max() <= 1
    assert images.std() > 0.1


@pytest.mark.parametrize(("prediction", "theirs"), [("eps", "epsilon"), ("v", "v_prediction"), ("x0", "sample")])
def test_somebody_else_s_sampler_draws_with_our_network_what_ours_does(prediction, theirs):
    """DDIM of diffusers, at the same steps, and with the clean sample at the end."""
    unet = UNetConfig(width=8, multipliers=(1, 2), blocks=1, head_dim=8, condition_width=32)
    network = randomise(DecoderNetwork(DecoderConfig(unet, embed_dim=6, text_width=5, image_size=8)))
    none = torch.zeros(3, dtype=torch.bool)
    condition = network.condition(torch.randn(3, 6), none, torch.randn(3, 4, 5), torch.ones(3, 4).bool(), none)
    start, process = torch.randn(3, 1, 8, 8), VariancePreserving(1000, "linear")
    scheduler = diffusers.DDIMScheduler(
        1000, beta_start=1e-4, beta_end=0.02, prediction_type=theirs, clip_sample=False, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(10)
    with torch.inference_mode():
        model = at_level(lambda x, time: network(x, time, condition), process)
        images = ddim(make_denoiser(model, prediction), start, even_levels(process, 10))
        x = start
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t.float().expand(3), condition), t, x).prev_sample
    torch.testing.assert_close(images / x.std(), x / x.std(), rtol=0, atol=1e-4)
