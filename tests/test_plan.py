"""The plan of a training: parameters, operations and disk against real tensors and published sizes; the program."""

from dataclasses import replace

import pytest
import torch
from conftest import assert_one_error_line, made_up_data
from planned import (
    PRESETS,
    REQUIRED,
    RUN_HERE,
    cost,
    draw,
    kept,
    make_stage,
    options,
    saved_bytes,
    step_operations,
    weights,
)

from configs import clip as clip_presets
from data.dataset import ListedCaptions
from stages.clip import AugmentConfig
from stages.embed import embed_images
from stages.plan import plan_report
from stages.plan.counting import count_part, counting_operations
from stages.plan.limits import cache_bytes
from stages.plan.machine import DEVICES, count, duration, short
from stages.plan.plan_report import plan_parts
from stages.plan.pretended import PretendedDevice
from stages.plan.synthetic import make_clip_inputs
from unclip.clip import CLIP, CLIPConfig, Preprocess, TextConfig, Tokenizer, VisionConfig
from unclip.errors import UserError
from unclip.registry import find_kind, resolve

VIT_B_32 = CLIPConfig(
    embed_dim=512,
    vision=VisionConfig(224, 3, patch_size=32, width=768, layers=12, heads=12, activation="quick_gelu"),
    text=TextConfig(49_408, context=77, width=512, layers=12, heads=8, activation="quick_gelu"),
)
VIT_L_14 = CLIPConfig(
    embed_dim=768,
    vision=VisionConfig(224, 3, patch_size=14, width=1024, layers=24, heads=16, activation="quick_gelu"),
    text=TextConfig(49_408, context=77, width=768, layers=12, heads=12, activation="quick_gelu"),
)

H100 = ("cuda", torch.bfloat16)
"""A device's type, and in which type it computes."""


# --- parameters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("part", REQUIRED)
def test_parameters_are_those_of_the_model(preset, part):
    planned = plan_parts(options(preset))[part]
    stage_class = resolve(find_kind(part, planned.run.kind).stage)
    with torch.device("meta"):
        model = stage_class.build_model(planned.run, planned.inputs.shapes)
    counted = cost(preset, part, *H100) if preset == "paper" else cost(preset, part)
    assert counted.parameters == sum(p.numel() for p in model.parameters())
    assert counted.untrained == sum(b.numel() for b in model.buffers())


def test_paper_has_the_papers_sizes():
    sizes = {part: cost("paper", part, *H100).parameters for part in REQUIRED}
    assert [short(sizes[part]) for part in ("clip", "prior", "decoder")] == ["986 M", "1.23 G", "3.33 G"]
    assert round(sizes["prior"] / 1e9) == 1
    assert sizes["decoder"] == pytest.approx(3.5e9, rel=0.06)
    with torch.device("meta"):
        image_tower = CLIP(options("paper").clip.model).vision
    parameters = sum(p.numel() for p in image_tower.parameters())
    assert parameters == pytest.approx(632e6, rel=0.01), "ViT-H (Dosovitskiy et al. 2020, table 1)"


@pytest.mark.parametrize(
    ("config", "parameters", "image", "text"),
    [(VIT_B_32, 151_277_313, 8.82e9, 5.96e9), (VIT_L_14, 427_616_513, 162.03e9, 13.30e9)],
)
def test_clips_have_their_published_sizes(config, parameters, image, text):
    """Operations as open_clip's table of models has them, which also takes a product and a sum for two."""
    inputs = make_clip_inputs(224, 3, 49_408)
    counted = count_part("clip", replace(clip_presets.PRESETS["quick"], model=config), inputs)
    assert counted.parameters == parameters
    assert counted.operations == pytest.approx(image + text, rel=0.1)
    with torch.device("meta"), counting_operations() as counter, PretendedDevice("cpu"):
        CLIP(config).encode_image(torch.empty(1, 3, 224, 224))
    assert counter.get_total_flops() == pytest.approx(image, rel=0.1)


# --- operations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("preset", "part"), [*RUN_HERE, *(("base", part) for part in REQUIRED)])
def test_operations_are_those_that_real_tensors_take(preset, part):
    stage = make_stage(preset, part)
    forward, training = step_operations(stage, draw(stage, 2))
    assert cost(preset, part).operations == pytest.approx(forward / 2, rel=0.02)
    assert cost(preset, part).training == pytest.approx(training / 2, rel=0.02)


@pytest.mark.parametrize(("device", "dtype"), [("cpu", torch.float32), ("cuda", torch.bfloat16)])
def test_operations_are_the_same_on_all_devices(device, dtype):
    assert cost("tiny", "decoder", device, dtype).training == cost("tiny", "decoder").training


@pytest.mark.parametrize("share", [0.5, 0.01])
def test_patches_that_are_left_out_take_no_operations_and_no_memory(share):
    augment = AugmentConfig(keep_patches=share)
    planned = plan_parts(options("base"))["clip"]
    counted = count_part("clip", replace(planned.run, augment=augment), planned.inputs)
    stage = make_stage("base", "clip", augment=augment)
    batch = draw(stage, 8)
    assert counted.training == pytest.approx(step_operations(stage, batch)[1] / 8, rel=0.02)
    measured = kept(stage.objective, batch, weights(stage.model))
    assert saved_bytes(counted, 8) == pytest.approx(measured, rel=0.1)
    assert counted.parameters == cost("base", "clip").parameters


# --- disk -------------------------------------------------------------------------------------------------------------


def test_cache_takes_what_its_files_take(tmp_path):
    data = made_up_data(30, seed=0)
    captions = [f"a thing of number {i}" for i in range(30)]
    data.captioner = ListedCaptions(captions, torch.arange(30)[:, None], torch.ones(30, dtype=torch.long))
    tokenizer = Tokenizer.train(captions, 300)
    text = TextConfig(tokenizer.vocab_size, tokenizer.end_id, width=16, layers=1, heads=2)
    config = CLIPConfig(16, VisionConfig(patch_size=14, width=16, layers=1, heads=2), text)
    model = CLIP(config).eval()
    embed_images(data, model, "c" * 64, tokenizer, Preprocess(28, 1), torch.device("cpu"), tmp_path)
    lengths = model.text.mask(tokenizer.encode(captions, text.context)).sum(dim=1)
    header = 128  # of an .npy file; and the last caption's end
    files = sum(path.stat().st_size - header for path in tmp_path.rglob("*.npy")) - 8
    assert files == sum(cache_bytes(config, length) for length in lengths.tolist())


# --- the program ------------------------------------------------------------------------------------------------------


def test_plan_of_the_papers_sizes_says_what_breaks_first(script, monkeypatch):
    """By costs that other tests have counted."""
    monkeypatch.setattr(plan_report, "count_part", lambda part, _, __, *device: cost("paper", part, *device))
    finished = script(
        "stages.plan.__main__", "--preset", "paper", "--images", "650M", "--gpus", 256, "--device", "h100"
    )
    assert finished.code == 0, finished.err
    for words in ("986 M", "1.23 G", "3.33 G", "FSDP2, recomputed", "635000", "days", "What breaks first", "upsamplers",
                  "train_decoder.py --preset paper --train.shard", "table of the contrastive loss",
                  "cache of embeddings on disk", "210 TB of 30.0 TB", "shards of 256x256 JPEG files, 21.1 TB",
                  "421 TB of 30.0 TB", "Cheaper: --data.embed online, as the disk does not hold"):  # fmt: skip
        assert words in finished.out
    seconds = 635_000 * 32_768 * cost("paper", "clip", *H100).training / (256 * 0.4 * 989e12)
    assert f"{seconds / 86_400:.2f} days" in next(line for line in finished.out.splitlines() if line.startswith("time"))


@pytest.mark.parametrize(
    ("preset", "device"),
    [*((preset, "cpu") for preset in PRESETS if preset != "paper"), *(("tiny", device) for device in DEVICES)],
)
def test_every_preset_can_be_planned_on_every_device(preset, device, script, monkeypatch):
    """By costs that other tests have counted."""
    monkeypatch.setattr(plan_report, "count_part", lambda part, _, __, *device: cost(preset, part, *device))
    finished = script("stages.plan.__main__", "--preset", preset, "--device", device)
    assert finished.code == 0, finished.err
    assert finished.out.count("memory per device: alone") == 2


def test_own_sizes_are_planned(script):
    wide = ("--decoder.model.width", 128, "--decoder.batch-size", 64, "--size", 64, "--images", "3M", "--epochs", 2)
    finished = script("stages.plan.__main__", "--preset", "tiny", *wide)
    assert finished.code == 0, finished.err
    assert "93750" in finished.out, "the decoder's steps: 2 x 3M / 64"


def test_fewer_patches_shorten_training_but_not_the_cache_whose_images_are_seen_whole(script):
    whole, half = (
        script("stages.plan.__main__", "--preset", "tiny", "--clip.augment.keep-patches", share).out.splitlines()
        for share in (1, 0.5)
    )
    times = [next(line for line in lines if line.startswith("time")).split() for lines in (whole, half)]
    assert times[0] != times[1]
    cache = [line for line in whole if "cache of embeddings, before" in line]
    assert cache
    assert cache == [line for line in half if "cache of embeddings, before" in line]


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [("--preset", "huge", ["huge", "paper"]), ("--images", "many", ["--images", "650M"]), ("--gpus", 0, ["--gpus"]),
     ("--device", "tpu", ["tpu", "h100"]), ("--mfu", 2, ["--mfu"]), ("--disk", "-1T", ["--disk"]),
     ("--gpus", 7, ["--clip.batch-size 64", "multiple"]), ("--prior.model.heads", 3, ["--prior.model.heads"]),
     ("--prior.kind", "none", ["none", "diffusion"]), ("--upsampler.steps", 5, ["give --also upsampler too"])],
)  # fmt: skip
def test_what_cannot_be_planned_is_one_line(option, value, words, script):
    assert_one_error_line(script("stages.plan.__main__", option, value), *words)


def test_numbers_are_read_and_written_as_people_do():
    assert [count(text, "--x") for text in ("51374", "650M", "1.5T", "2,000", "3b", "1e6")] == [
        51374, 650e6, 1.5e12, 2000, 3e9, 1e6
    ]  # fmt: skip
    for text in ("", "0", "-3", "M", "nan", "1e400", "3 MB"):
        with pytest.raises(UserError, match="--x must be a positive number"):
            count(text, "--x")
    assert [short(n) for n in (0.5, 999.9, 1234567, 3.5e9)] == ["0.500", "1.00 k", "1.23 M", "3.50 G"]
    assert [duration(n) for n in (0.5, 90, 7200, 86_400 * 3, 86_400 * 1461)] == [
        "0.5 s", "1.5 min", "2 h", "3 days", "4 years"
    ]  # fmt: skip
