"""The plan of a training, against the operations and memory of real tensors, and published sizes."""

import gc
import weakref
from dataclasses import dataclass, field, replace
from functools import cache, partial

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
from configs import clip as clip_presets
from data.dataset import ListedCaptions
from stages.batches import StepDraw
from stages.clip import AugmentConfig
from stages.embed import embed_images
from stages.loop import TrainConfig
from stages.memory import compile_blocks, recompute
from stages.optim import make_optimizers
from stages.plan import plan_report
from stages.plan.counting import PartCost, count_part, counting_operations
from stages.plan.layout import Budget, Layout
from stages.plan.limits import cache_bytes
from stages.plan.machine import DEVICES, count, duration, short
from stages.plan.plan_options import PlanOptions, plan_presets
from stages.plan.plan_report import make_budgets, plan, plan_parts
from stages.plan.pretended import PretendedDevice
from stages.plan.synthetic import make_clip_inputs
from stages.run_options import FrozenCLIPRun, Shapes
from unclip.clip import CLIP, CLIPConfig, Preprocess, TextConfig, Tokenizer, VisionConfig
from unclip.clip.loss import contrastive_loss
from unclip.errors import UserError
from unclip.registry import PARTS, Kind, Part, find_kind, resolve
from unclip.tensor_batch import TensorBatch

PRESETS = ("tiny", "quick", "small", "base", "paper")
REQUIRED = [part for part, row in PARTS.items() if not row.optional]
RUN_HERE = [(preset, part) for preset in ("tiny", "quick") for part in REQUIRED]
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
    return replace(plan_presets()[preset], **others)


@cache
def budget(preset: str, part: str, **others) -> Budget:
    chosen = options(preset, **others)
    return make_budgets(chosen, {part: plan_parts(chosen)[part]})[part]


@cache
def cost(preset: str, part: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> PartCost:
    planned = plan_parts(options(preset))[part]
    return count_part(part, planned.run, planned.inputs, device, dtype)


def saved_bytes(counted: PartCost, size: int) -> float:
    """Bytes kept of a batch of that size."""
    return counted.saved.fixed + counted.saved.per_example * size + counted.saved.per_pair * size**2


def make_stage(preset: str, part: str, **changes):
    """A stage with a real model on the planner's inputs, as `changes` to the trainer's options have it."""
    planned = plan_parts(options(preset))[part]
    run = replace(planned.run, **changes)
    stage_class = resolve(find_kind(part, run.kind).stage)
    return stage_class(run, stage_class.build_model(run, planned.inputs.shapes), planned.inputs, torch.device("cpu"))


def draw(stage, size: int) -> TensorBatch:
    """A batch with captions as long as can be, each of them another."""
    return stage.batch(StepDraw(torch.arange(size), torch.Generator().manual_seed(0), seed=0, step=0))


def step_operations(stage, batch: TensorBatch) -> tuple[float, float]:
    """Operations of a forward pass, and of it with its backward pass, as PyTorch counts them on real tensors."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss = stage.objective(batch)
        forward = counter.get_total_flops()
        loss.backward()
    return forward, counter.get_total_flops()


# --- parameters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("part", REQUIRED)
def test_parameters_are_those_of_the_model(preset, part):
    planned = plan_parts(options(preset))[part]
    stage_class = resolve(find_kind(part, planned.run.kind).stage)
    with torch.device("meta"):
        model = stage_class.build_model(planned.run, planned.inputs.shapes)
    counted = cost(preset, part)
    assert counted.parameters == sum(p.numel() for p in model.parameters())
    assert counted.untrained == sum(b.numel() for b in model.buffers())


def test_paper_has_the_papers_sizes():
    sizes = {part: cost("paper", part).parameters for part in REQUIRED}
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


@pytest.mark.parametrize(("preset", "part"), [*RUN_HERE, ("base", "decoder")])
def test_bytes_counted_are_those_that_autograd_keeps(preset, part):
    stage = make_stage(preset, part)
    measured = kept(stage.objective, draw(stage, 8), weights(stage.model))
    assert saved_bytes(cost(preset, part), 8) == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize(("preset", "part"), RUN_HERE)
def test_plain_attention_keeps_as_much_more_as_is_counted(preset, part, monkeypatch):
    stage = make_stage(preset, part)
    batch = draw(stage, 8)
    plain = kept(stage.objective, batch, weights(stage.model))
    counted = saved_bytes(cost(preset, part), 8) - saved_bytes(cost(preset, part, "cuda"), 8)
    monkeypatch.setattr(unclip.layers, "FEW_KEYS", 0)
    fused = kept(stage.objective, batch, weights(stage.model))
    assert counted == pytest.approx(plain - fused, rel=0.1)


class CudaAutocast(TorchFunctionMode):
    """Do what autocast does on CUDA, by its lists of operations, on any device. Weights are cast once, as there."""

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


@pytest.mark.parametrize(("preset", "part"), RUN_HERE)
def test_half_the_bytes_are_kept_where_autocast_halves_them(preset, part, monkeypatch):
    counted = cost(preset, part, "cuda", torch.bfloat16)
    # both as on a GPU
    monkeypatch.setattr(unclip.layers, "wide_on_cpu", lambda x: x)
    monkeypatch.setattr(unclip.layers, "FEW_KEYS", 0)
    stage = make_stage(preset, part)
    batch = draw(stage, 8)
    with CudaAutocast() as autocast:
        stage.objective(batch)  # so that the cast weights are there
        copies = {weight.untyped_storage().data_ptr() for weight in autocast.weights.values()}
        measured = kept(stage.objective, batch, weights(stage.model) | copies)
    assert saved_bytes(counted, 8) - counted.saved.fixed == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("part", REQUIRED)
def test_copies_of_the_weights_in_bfloat16_are_counted(part):
    counted = cost("quick", part, "cuda", torch.bfloat16)
    in_products = counted.parameters - (1024 * 128 if part == "clip" else 0)  # the table of tokens is only looked up
    assert 2 * in_products == pytest.approx(counted.saved.fixed, rel=0.1)


def test_contrastive_loss_keeps_three_tables():
    rows = [torch.randn(400, 4, requires_grad=True) for _ in range(2)]  # narrow, so that the tables prevail

    class Loss(nn.Module):
        def forward(self, caption: Tensor) -> Tensor:
            return contrastive_loss(*rows, caption, 10.0)

    per_pair = cost("tiny", "clip").saved.per_pair
    assert kept(Loss(), torch.arange(400), set()) == pytest.approx(per_pair * 400**2, rel=0.1)
    assert [cost("tiny", part).saved.per_pair for part in ("prior", "decoder")] == [0, 0]


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
    ("preset", "part", "recomputed"),
    [(preset, part, recomputed) for preset, part in RUN_HERE for recomputed in (False, True)],
)
def test_memory_of_a_step_is_what_is_measured(preset, part, recomputed):
    size = 16
    planned = replace(budget(preset, part), batch_size=size, moments=2)
    stage = make_stage(preset, part)
    batch = draw(stage, size)
    if recomputed:
        recompute(stage.model)
    optimizers = make_optimizers(stage.model, 1e-3, 0.05, (0.9, 0.99))

    def step() -> None:
        stage.model.zero_grad()
        stage.objective(batch).backward()
        for optimizer in optimizers:
            optimizer.step()

    step()  # which makes the moments
    stage.model.zero_grad()
    between = planned.state(sharded=False)
    assert planned.memory(Layout(recomputed=recomputed)) == pytest.approx(between + peak(step), rel=0.1)


@pytest.mark.parametrize("change", [recompute, partial(compile_blocks, backend="aot_eager")])
@pytest.mark.parametrize("part", REQUIRED)
def test_recomputed_or_compiled_blocks_change_no_result(part, change):
    """Nor are fewer gradients there."""
    torch.manual_seed(0)
    stage = make_stage("tiny", part)
    if part == "clip":
        stage.train_data.images.random_()
        stage.token_ids[:, 1:-1].random_(2, 20)
    else:
        stage.inputs.train.tokens.normal_()
        stage.inputs.train.data.images.random_()
    batch = draw(stage, 4)
    for parameter in stage.model.parameters():  # some begin at zero, behind which nothing is seen
        nn.init.normal_(parameter, std=0.1)
    results = []
    for _ in range(2):
        stage.model.zero_grad()
        loss = stage.objective(batch)
        loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in stage.model.parameters())])
        change(stage.model)
    torch.testing.assert_close(results[0], results[1])


def test_sharded_state_is_shared_out_and_ddp_keeps_gradients_in_its_buckets():
    one = budget("base", "clip")
    four = budget("base", "clip", gpus=4)
    parameters = one.cost.parameters
    assert one.state(sharded=False) == 4 * 4 * parameters
    assert four.state(sharded=False) == 5 * 4 * parameters
    assert four.state(sharded=True) == one.state(sharded=False) / 4
    assert four.pairs() == one.pairs() / 4
    held = four.state(sharded=False) + four.pairs()
    for parts, earlier in ((1, 0), (4, 4 * parameters)):  # which only the last part puts into buckets
        activations = four.activations(four.share / parts, recomputed=False)
        assert four.memory(Layout(accumulate=parts)) == pytest.approx(held + activations + earlier)


def test_only_a_part_whose_loss_compares_examples_needs_another_forward_pass_to_take_them_in_parts():
    for part in REQUIRED:
        planned = budget("tiny", part)
        more = planned.operations(Layout(accumulate=2)) - planned.operations(Layout())
        assert more == (planned.cost.operations if part == "clip" else 0)


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


def test_plan_of_the_papers_sizes_says_what_breaks_first(script):
    finished = script(
        "stages.plan.__main__", "--preset", "paper", "--images", "650M", "--gpus", 256, "--device", "h100"
    )
    assert finished.code == 0, finished.err
    for words in ("986 M", "1.23 G", "3.33 G", "FSDP2, recomputed", "635000", "days", "What breaks first", "upsamplers",
                  "train_decoder.py --preset paper --train.shard", "table of the contrastive loss",
                  "cache of embeddings on disk", "210 TB of 30.0 TB"):  # fmt: skip
        assert words in finished.out
    seconds = 635_000 * 32_768 * cost("paper", "clip").training / (256 * 0.4 * 989e12)
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
    finished = script("stages.plan.__main__", "--preset", "base", *wide)
    assert finished.code == 0, finished.err
    assert "93750" in finished.out, "the decoder's steps: 2 x 3M / 64"


def test_fewer_patches_shorten_training_but_not_the_cache_whose_images_are_seen_whole(script):
    whole, half = (
        script("stages.plan.__main__", "--preset", "base", "--clip.augment.keep-patches", share).out.splitlines()
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


# --- kinds that are not in this repository ----------------------------------------------------------------------------


@dataclass(frozen=True)
class ToyConfig:
    hidden: int = 100


@dataclass(frozen=True)
class ToyRun(FrozenCLIPRun):
    kind: str = "toy"
    model: ToyConfig = ToyConfig()
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=10, batch_size=8))


class Toy(nn.Module):
    """A decoder of two linear layers."""

    def __init__(self, config: ToyConfig, shapes: Shapes):
        super().__init__()
        self.config = config
        self.first = nn.Linear(shapes.embed_dim, config.hidden)
        self.second = nn.Linear(config.hidden, shapes.channels * shapes.image_size**2)
        self.register_buffer("scale", torch.ones(shapes.embed_dim))


@dataclass(frozen=True)
class ToyBatch(TensorBatch):
    pixels: Tensor
    embeddings: Tensor


class ToyObjective(nn.Module):
    def __init__(self, model: Toy):
        super().__init__()
        self.model = model

    def forward(self, batch: ToyBatch) -> Tensor:
        drawn = self.model.second(F.relu(self.model.first(batch.embeddings)))
        return F.mse_loss(drawn.float(), batch.pixels.flatten(1).float())


class ToyStage:
    def __init__(self, run: ToyRun, model: Toy, inputs, device: torch.device):
        self.model = model
        self.inputs = inputs
        self.objective = ToyObjective(model)

    @staticmethod
    def build_model(run: ToyRun, shapes: Shapes) -> Toy:
        return Toy(run.model, shapes)

    def batch(self, draw: StepDraw) -> ToyBatch:
        images = self.inputs.train
        embeddings = images.embeddings[draw.rows] * self.model.scale.cpu()
        return ToyBatch(images.data.images[draw.rows], embeddings)


TOY = Kind(Toy, {"quick": ToyRun()}, ToyStage)


def test_a_kind_from_elsewhere_is_planned_by_its_row_alone(monkeypatch, script):
    monkeypatch.setitem(PARTS["decoder"].kinds, "toy", TOY)
    finished = script("stages.plan.__main__", "--decoder.kind", "toy", "--decoder.model.hidden", 50)
    assert finished.code == 0, finished.err
    parameters = 128 * 50 + 50 + 50 * 784 + 784
    row = next(line for line in finished.out.splitlines() if line.startswith("parameters"))
    assert row.endswith(short(parameters))
    assert "train_decoder.py --kind toy --preset quick" in finished.out


def test_what_a_kind_from_elsewhere_takes_is_counted(monkeypatch):
    monkeypatch.setitem(PARTS["decoder"].kinds, "toy", TOY)
    inputs = plan_parts(options("quick"))["decoder"].inputs
    counted = count_part("decoder", ToyRun(), inputs)
    forward = 2 * (128 * 100 + 100 * 784)
    assert counted.operations == forward
    assert counted.training == 3 * forward - 2 * 128 * 100, "the embeddings have no gradient"
    assert counted.untrained == 128
    assert counted.pixels == 784
    assert counted.block_parameters == counted.block_operations == 0
    assert counted.saved == counted.saved_recomputed, "there is no block to recompute"
    saved = 4 * (128 + 100 + 784 + 784)  # the embeddings, the hidden layer, what is drawn, what should be
    assert counted.saved.per_example == pytest.approx(saved, rel=0.1)


def test_an_optional_part_has_a_column(monkeypatch):
    monkeypatch.setitem(PARTS, "enlarger", Part({"toy": TOY}, parents=("clip",), optional=True))
    presets = plan_presets()
    assert "enlarger" not in plan(presets["quick"])
    report = plan(replace(presets["quick"], also=("enlarger",)))
    assert "decoder              enlarger" in report
    assert "python -m stages.train enlarger --preset quick" in report


def test_the_fast_decoder_s_teacher_is_counted_and_the_upsampler_s_images_are_large():
    planned = plan_parts(options("tiny", also=("fast_decoder", "upsampler")))
    counted = {part: count_part(part, plan.run, plan.inputs) for part, plan in planned.items()}
    student = counted["fast_decoder"]
    assert student.parameters == counted["decoder"].parameters
    assert student.untrained > student.parameters
    run = planned["fast_decoder"].run
    calls = run.points + run.levels  # of the network, forward: the student's, and the teacher's unguided ones
    assert student.operations > 0.8 * calls * counted["decoder"].operations
    assert counted["upsampler"].pixels == (2 * 28) ** 2, "the preset enlarges twice"
    plans = [plan_parts(options("tiny", also=("upsampler",), size=size))["upsampler"] for size in (16, 32)]
    small, large = (count_part("upsampler", plan.run, plan.inputs).operations for plan in plans)
    assert large == pytest.approx(4 * small, rel=0.05)


def test_an_unknown_optional_part_is_refused():
    with pytest.raises(UserError, match="--also takes the optional parts fast_decoder, upsampler, not prior"):
        options("tiny", also=("prior",))


# --- numbers ----------------------------------------------------------------------------------------------------------


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
