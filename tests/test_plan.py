"""What `python -m stages.plan` says, against counted operations, measured memory, and published sizes."""

import gc
import weakref
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_one_error_line, made_up_data
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import unclip.layers
from configs import clip, decoder, prior
from data.dataset import ListedCaptions
from stages.clip import AugmentConfig, CLIPBatch, CLIPObjective
from stages.decoder import DecoderBatch, DecoderObjective
from stages.embed import embed_images
from stages.memory import compile_blocks, recompute
from stages.optim import make_optimizers
from stages.plan import costs
from stages.plan.layout import Budget, Way
from stages.plan.limits import cached
from stages.plan.machine import DEVICES, count, duration, short
from stages.plan.report import CLIPOptions, PlanOptions, budgets, configs
from stages.prior import PriorBatch, PriorObjective
from unclip.clip import CLIP, CLIPConfig, Preprocess, TextConfig, TextFeatures, Tokenizer, VisionConfig
from unclip.clip.loss import contrastive_loss
from unclip.decoder import Decoder
from unclip.errors import UserError
from unclip.prior import Prior

PRESETS = ("tiny", "quick", "small", "base", "paper")
PARTS = ("clip", "prior", "decoder")
RUN_HERE = [(preset, stage) for preset in ("tiny", "quick") for stage in PARTS]
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


def options(preset: str, **others) -> PlanOptions:
    return replace(PlanOptions.of(*(stage.PRESETS[preset] for stage in (clip, prior, decoder))), **others)


def budget(preset: str, stage: str, **others) -> Budget:
    return budgets(options(preset, **others))[PARTS.index(stage)]


def sparse(preset: str, keep_patches: float) -> CLIPOptions:
    run = clip.PRESETS[preset]
    return CLIPOptions.of(replace(run, augment=replace(run.augment, keep_patches=keep_patches)))


def objective(preset: str, stage: str) -> nn.Module:
    """A stage's objective on a new model, as the preset has it."""
    clip_config, prior_config, decoder_config = configs(options(preset))
    if stage == "prior":
        return PriorObjective(Prior(prior_config))
    if stage == "decoder":
        return DecoderObjective(Decoder(decoder_config))
    vision = clip_config.vision
    return CLIPObjective(CLIP(clip_config), Preprocess(vision.image_size, vision.channels))


def batch(preset: str, stage: str, size: int) -> CLIPBatch | PriorBatch | DecoderBatch:
    """A batch with captions as long as can be, each of them another."""
    clip_config, _, decoder_config = configs(options(preset))
    length, dim = clip_config.text.context, clip_config.embed_dim
    encodings = torch.randn(size, length, clip_config.text.width)
    flags = torch.ones(size, length, dtype=torch.bool)
    captions = TextFeatures(torch.randn(size, dim), encodings, flags, torch.zeros(size, dtype=torch.bool))
    embeddings, times = torch.randn(size, dim), torch.arange(size) % 1000
    if stage == "prior":
        return PriorBatch(embeddings, captions, times, torch.randn(size, dim))
    channels, side = decoder_config.channels, decoder_config.image_size
    if stage == "decoder":
        pixels = torch.zeros(size, channels, side, side, dtype=torch.uint8)
        noise = torch.randn(size, channels, side, side)
        return DecoderBatch(pixels, embeddings, torch.zeros(size, dtype=torch.bool), captions, times, noise)
    ids = torch.full((size, length), 5)
    ids[:, 0], ids[:, -1] = torch.arange(size) + 6, 1
    vision = clip_config.vision
    pixels = torch.zeros(size, vision.channels, vision.image_size, vision.image_size, dtype=torch.uint8)
    return CLIPBatch(pixels, torch.arange(size), ids)


# --- parameters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("stage", PARTS)
def test_parameters_are_those_of_the_model(preset, stage):
    with torch.device("meta"):
        built = objective(preset, stage)
    assert budget(preset, stage).model.total.parameters == sum(p.numel() for p in built.parameters())


def test_paper_has_the_papers_sizes():
    sizes = {stage: budget("paper", stage).model.total.parameters for stage in PARTS}
    assert round(sizes["prior"] / 1e9) == 1
    assert sizes["decoder"] == pytest.approx(3.5e9, rel=0.06)
    clip_config, _, _ = configs(options("paper"))
    image_tower = costs.vision(clip_config.vision, clip_config.embed_dim).total.parameters
    assert image_tower == pytest.approx(632e6, rel=0.01), "ViT-H (Dosovitskiy et al. 2020, table 1)"


@pytest.mark.parametrize(
    ("config", "parameters", "image", "text"),
    [(VIT_B_32, 151_277_313, 8.82e9, 5.96e9), (VIT_L_14, 427_616_513, 162.03e9, 13.30e9)],
)
def test_clips_have_their_published_sizes(config, parameters, image, text):
    """Operations as open_clip's table of models has them, which also takes a product and a sum for two."""
    assert costs.clip(config, 77).total.parameters == parameters
    assert costs.vision(config.vision, config.embed_dim).total.operations == pytest.approx(image, rel=0.1)
    assert costs.text(config.text, config.embed_dim, 77).total.operations == pytest.approx(text, rel=0.1)


# --- operations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("preset", "stage"), [*RUN_HERE, *(("base", stage) for stage in PARTS)])
def test_operations_are_those_that_are_counted(preset, stage):
    cost, examples, model = budget(preset, stage).model.total, batch(preset, stage, 1), objective(preset, stage)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss = model(examples)
        forward = counter.get_total_flops()
        loss.backward()
    assert cost.operations == pytest.approx(forward, rel=0.02)
    assert cost.training == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize("share", [0.5, 0.01])
def test_patches_that_are_left_out_take_no_operations_and_no_memory(share):
    plan, model, augment = (
        budget("base", "clip", clip=sparse("base", share)),
        objective("base", "clip"),
        AugmentConfig(keep_patches=share),
    )
    drawn = torch.rand(8, 49).topk(augment.patches(49)).indices
    examples = replace(batch("base", "clip", 8), patches=drawn)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(examples).backward()
    assert plan.model.total.training == pytest.approx(counter.get_total_flops() / 8, rel=0.02)
    measured = kept(model, examples, weights(model)) / 8
    assert plan.model.total.kept(4) == pytest.approx(measured, rel=0.1)
    assert plan.model.total.parameters == budget("base", "clip").model.total.parameters


# --- memory -----------------------------------------------------------------------------------------------------------


class Handle:
    """A tensor that is kept for the backward pass, for as long as it is."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor.detach()  # with its graph it would keep itself alive


def kept(model: nn.Module, examples, outside: set[int]) -> int:
    """Bytes that a forward pass leaves behind, but for storages that were there before."""
    handles = weakref.WeakSet()

    def pack(tensor: Tensor) -> Handle:
        handles.add(handle := Handle(tensor))
        return handle

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda handle: handle.tensor):
        loss = model(examples)
    storages = {h.tensor.untyped_storage().data_ptr(): h.tensor.untyped_storage().nbytes() for h in handles}
    assert loss.requires_grad  # and so holds the graph until here
    return sum(size for place, size in storages.items() if place not in outside)


def weights(model: nn.Module) -> set[int]:
    return {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}


@pytest.mark.parametrize(("preset", "stage"), [*RUN_HERE, ("base", "decoder")])
def test_what_is_kept_of_an_example_is_what_autograd_keeps(preset, stage):
    model = objective(preset, stage)
    measured = kept(model, batch(preset, stage, 8), weights(model)) / 8
    assert budget(preset, stage).model.total.kept(4) == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize(("preset", "stage"), RUN_HERE)
def test_plain_attention_keeps_as_much_more_as_is_planned(preset, stage, monkeypatch):
    model, examples = objective(preset, stage), batch(preset, stage, 8)
    plain = kept(model, examples, weights(model))
    monkeypatch.setattr(unclip.layers, "FEW_KEYS", 0)
    fused = kept(model, examples, weights(model))
    assert 4 * 8 * budget(preset, stage).model.total.plain == pytest.approx(plain - fused, rel=0.1)


class CudaAutocast(TorchFunctionMode):
    """What autocast does on CUDA, by its lists of operations, on any device. Weights are cast once, as there."""

    narrow = (F.linear, F.conv2d, torch.conv2d, F.conv_transpose2d, F.scaled_dot_product_attention, Tensor.matmul)
    wide = (F.layer_norm, F.group_norm, F.mse_loss, F.cross_entropy)

    def __init__(self):
        super().__init__()
        self.weights: dict[int, Tensor] = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kind = torch.bfloat16 if func in self.narrow else torch.float32 if func in self.wide else None
        if kind:
            args = [self.cast(value, kind) for value in args]
            kwargs = {name: self.cast(value, kind) for name, value in (kwargs or {}).items()}
        return func(*args, **kwargs or {})

    def cast(self, value, kind: torch.dtype):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        if isinstance(value, nn.Parameter) and kind == torch.bfloat16:
            return self.weights.setdefault(id(value), value.to(kind))
        return value.to(kind)


@pytest.mark.parametrize(("preset", "stage"), RUN_HERE)
def test_half_the_bytes_are_kept_where_autocast_halves_them(preset, stage, monkeypatch):
    # both as on a GPU
    monkeypatch.setattr(unclip.layers, "wide_on_cpu", lambda x: x)
    monkeypatch.setattr(unclip.layers, "FEW_KEYS", 0)
    model, examples = objective(preset, stage), batch(preset, stage, 8)
    with CudaAutocast() as autocast:
        model(examples)  # so that the cast weights are there
        copies = {weight.untyped_storage().data_ptr() for weight in autocast.weights.values()}
        measured = kept(model, examples, weights(model) | copies) / 8
    assert budget(preset, stage).model.total.kept(2) == pytest.approx(measured, rel=0.1)


def test_contrastive_loss_keeps_three_tables():
    rows = torch.randn(200, 16, requires_grad=True), torch.randn(200, 16, requires_grad=True)

    class Loss(nn.Module):
        def forward(self, caption: Tensor) -> Tensor:
            return contrastive_loss(*rows, caption, 10.0)

    assert kept(Loss(), torch.arange(200), set()) == pytest.approx(costs.contrastive(200, 200), rel=0.1)


def peak(work) -> int:
    """The most bytes that work() holds at a time beyond those that were there."""
    gc.collect()  # what earlier tests left must not be freed in between
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest


@pytest.mark.parametrize(
    ("preset", "stage", "recomputed"),
    [(preset, stage, recomputed) for preset, stage in RUN_HERE for recomputed in (False, True)],
)
def test_memory_of_a_step_is_what_is_measured(preset, stage, recomputed):
    size = 16
    plan = replace(budget(preset, stage), batch_size=size, moments=2)
    model, examples = objective(preset, stage), batch(preset, stage, size)
    if recomputed:
        recompute(model)
    optimizers = make_optimizers(model.model, 1e-3, 0.05, (0.9, 0.99))

    def step() -> None:
        model.zero_grad()
        model(examples).backward()
        for optimizer in optimizers:
            optimizer.step()

    step()  # which makes the moments
    model.zero_grad()
    between = plan.state(sharded=False)
    assert plan.memory(Way(recomputed=recomputed)) == pytest.approx(between + peak(step), rel=0.1)


@pytest.mark.parametrize("change", [recompute, partial(compile_blocks, backend="aot_eager")])
@pytest.mark.parametrize("stage", PARTS)
def test_recomputed_or_compiled_blocks_change_no_result(stage, change):
    """Nor are fewer gradients there."""
    model, examples = objective("tiny", stage), batch("tiny", stage, 4)
    for parameter in model.parameters():  # some begin at zero, behind which nothing is seen
        nn.init.normal_(parameter, std=0.1)
    results = []
    for _ in range(2):
        model.zero_grad()
        loss = model(examples)
        loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
        change(model)
    torch.testing.assert_close(results[0], results[1])


def test_sharded_state_is_shared_out_and_ddp_keeps_gradients_in_its_buckets():
    one, four = budget("base", "clip"), budget("base", "clip", gpus=4)
    assert one.state(sharded=False) == 4 * 4 * one.model.total.parameters
    assert four.state(sharded=False) == 5 * 4 * one.model.total.parameters
    assert four.state(sharded=True) == one.state(sharded=False) / 4
    assert four.contrastive() == one.contrastive() / 4
    held = four.state(sharded=False) + four.copied(sharded=False) + four.contrastive()
    for parts, earlier in ((1, 0), (4, 4 * one.model.total.parameters)):  # which only the last part puts into buckets
        activations = four.activations(four.share / parts, recomputed=False)
        assert four.memory(Way(accumulate=parts)) == pytest.approx(held + activations + earlier)


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
    assert files == sum(cached(config, length) for length in lengths.tolist())


# --- the program ------------------------------------------------------------------------------------------------------


def test_plan_of_the_papers_sizes_says_what_breaks_first(script):
    finished = script(
        "stages.plan.__main__", "--preset", "paper", "--images", "650M", "--gpus", 256, "--device", "h100"
    )
    assert finished.code == 0, finished.err
    for words in ("986 M", "1.23 G", "3.33 G", "FSDP2, recomputed", "635000", "days", "What breaks first", "upsamplers",
                  "train_decoder.py --preset paper --train.shard", "table of the contrastive loss",
                  "cache of embeddings on disk", "210 TB of 30.0 TB"):  # fmt: skip
        assert words in finished.out
    seconds = 635_000 * 32_768 * budget("paper", "clip").model.total.training / (256 * 0.4 * 989e12)
    assert f"{seconds / 86_400:.2f} days" in next(line for line in finished.out.splitlines() if line.startswith("time"))


@pytest.mark.parametrize(
    ("preset", "device"), [*((preset, "cpu") for preset in PRESETS), *(("base", device) for device in DEVICES)]
)
def test_every_preset_can_be_planned_on_every_device(preset, device, script):
    finished = script("stages.plan.__main__", "--preset", preset, "--device", device)
    assert finished.code == 0, finished.err
    assert finished.out.count("memory per device: alone") == 2


def test_own_sizes_are_planned(script):
    wide = ("--decoder.model.width", 128, "--decoder.batch-size", 64, "--size", 64, "--images", "3M", "--epochs", 2)
    finished = script("stages.plan.__main__", "--preset", "base", *wide)
    assert finished.code == 0, finished.err
    assert "93750" in finished.out, "the decoder's steps: 2 x 3M / 64"


def test_fewer_patches_shorten_training_but_not_the_cache_whose_images_are_seen_whole(script):
    whole, half = (
        script("stages.plan.__main__", "--preset", "base", "--clip.keep-patches", share).out.splitlines()
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
     ("--gpus", 7, ["--clip.batch-size 64", "multiple"]), ("--prior.model.heads", 3, ["--prior.model.heads"])],
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
