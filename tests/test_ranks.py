"""Several ranks, or a batch in several parts, give what one process with the whole batch gives."""

import contextlib
import copy
import threading
import time
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from PIL import Image
from ranks import on_ranks
from runs import CPU, break_off, metrics, read_state
from three_stages import clip_stage, decoder_stage, draw_of, make_inputs, prior_stage, seeded
from toy import SETTINGS

from stages import heartbeat, loop, runtime
from stages.embed import embed_images
from stages.inputs import Inputs
from unclip.clip import CLIP
from unclip.store.manifest import Manifest
from unclip.store.parts import load_part
from unclip.tensor_batch import TensorBatch

PARTS = [clip_stage, prior_stage, decoder_stage]
BATCH = 24


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Inputs:
    return make_inputs(tmp_path_factory.mktemp("cache"))


def doubled(value):
    """A batch, or a tensor of it, in float64."""
    if isinstance(value, TensorBatch):
        return value.map(doubled)
    return value.double() if value.is_floating_point() else value


def gradients(make, inputs: Inputs, parts: int = 1) -> dict[str, torch.Tensor]:
    """This rank's gradients in float64, with all weights moved away from where they start, which is partly zero."""
    stage = make(inputs)
    stage.objective.double()
    with torch.no_grad():
        for parameter in stage.model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=seeded(1), dtype=parameter.dtype)
    stage.objective.parts = parts
    objective = runtime.distributed(stage.objective)
    batch = doubled(stage.batch(draw_of(BATCH, rank=runtime.rank(), ranks=runtime.world_size())))
    loss = loop.backward(objective, batch.split(parts), CPU, "float32")
    [loss] = runtime.mean_over_ranks([float(loss)], CPU)
    return {"loss": torch.tensor(loss, dtype=torch.float64)} | {
        name: p.grad for name, p in stage.model.named_parameters()
    }


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], within: float = 1e-12) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(torch.as_tensor(found[name]), value, atol=within, rtol=within, msg=name)


def as_arrays(tensors):
    return {name: tensor.numpy() for name, tensor in tensors.items()}


@pytest.mark.parametrize("ranks", [2, 3])
def test_gradients_of_several_ranks_are_those_of_one_with_the_whole_batch(ranks, inputs):
    captions = clip_stage(inputs).batch(draw_of(BATCH)).token_ids
    assert len(captions) < BATCH, "some caption describes several images"
    found = on_ranks(ranks, lambda: [as_arrays(gradients(make, inputs)) for make in PARTS])
    for expected, *each in zip([gradients(make, inputs) for make in PARTS], *found, strict=True):
        assert all(value.any() for value in expected.values())
        for one in each:
            assert_equal(one, expected)


def test_ranks_are_trained_after_an_export_too():
    torch.export.export(torch.nn.Linear(3, 3), (torch.ones(2, 3),))

    def work() -> float:
        weight = torch.ones(1, requires_grad=True)
        weight.backward()
        return weight.grad.item()

    assert on_ranks(2, work) == [1, 1]


@pytest.mark.parametrize("parts", [2, 4, 8])
@pytest.mark.parametrize("make", PARTS)
def test_gradients_of_a_batch_in_parts_are_those_of_the_whole(make, parts, inputs):
    assert_equal(gradients(make, inputs, parts), gradients(make, inputs))


def test_gradients_of_ranks_that_take_parts_are_those_of_the_whole(inputs):
    [found, _] = on_ranks(2, lambda: [as_arrays(gradients(make, inputs, parts=3)) for make in PARTS])
    for one, make in zip(found, PARTS, strict=True):
        assert_equal(one, gradients(make, inputs))


def test_without_the_gradient_through_the_gather_the_gradients_are_others(inputs, monkeypatch):
    gather = runtime.gather
    monkeypatch.setattr(runtime, "gather", lambda rows: gather(rows.detach()))
    [found, _] = on_ranks(2, lambda: as_arrays(gradients(clip_stage, inputs)))
    monkeypatch.undo()
    expected = gradients(clip_stage, inputs)
    assert_equal({"loss": found["loss"]}, {"loss": expected["loss"]})
    with pytest.raises(AssertionError):
        assert_equal(found, expected, within=1e-3)


def test_clip_in_parts_keeps_the_activations_of_one(inputs):
    """The bytes that autograd keeps for the backward pass."""

    def kept(parts: int) -> int:
        """With no parts that of the loss alone."""
        stage, sizes = clip_stage(inputs), []
        stage.objective.parts = max(1, parts)
        if not parts:
            whole = torch.no_grad()(stage.objective._in_parts)
            stage.objective._in_parts = lambda *rows: whole(*rows).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda x: (sizes.append(x.nbytes), x)[1], lambda x: x):
            stage.objective(stage.batch(draw_of(BATCH)))
        return sum(sizes)

    assert kept(4) - kept(0) < (kept(1) - kept(0)) / 10


# --- whole trainings --------------------------------------------------------------------------------------------------


def run(make, inputs, folder, stop=0, **options):
    """Train a stage in float64 on however many ranks there are, until the step `stop` is asked for; its last state.

    In float32 Adam would make a step of what is rounding alone, such as the gradient at the biases of keys.
    """
    stage = make(inputs)
    batch, evaluate = stage.batch, stage.evaluate
    stage.batch = lambda draw: doubled(batch(draw))
    stage.evaluate = lambda model: evaluate(copy.deepcopy(model).float())
    stage.preview = lambda _: Image.new("L", (1, 1))
    stage.objective.double()
    if stop:
        break_off(stage, "batch", stop)
    config = replace(SETTINGS, steps=2, batch_size=12, evaluate_every=4, save_every=1, log_every=1, muon_lr=0.01)
    with contextlib.suppress(KeyboardInterrupt):
        loop.train(stage, replace(config, **options), CPU, folder, Manifest(stage.name))
    return runtime.rank()


def assert_same_training(one, other, name):
    states = [read_state(folder, name)[0] for folder in (one, other)]
    assert_equal(*states, within=1e-9)
    assert {key.split(".")[0] for key in states[0]} == {"model", "average", "AdamW", "Muon"}
    for found, expected in zip(metrics(one, name), metrics(other, name), strict=True):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert load_part(one / name)[1].complete


@pytest.mark.parametrize("make", PARTS)
def test_shared_out_weights_are_trained_as_whole_ones(make, inputs, tmp_path):
    """FSDP on two ranks, in two parts, against DDP on two."""
    name = make(inputs).name
    on_ranks(2, lambda: run(make, inputs, tmp_path / "whole"))
    on_ranks(2, lambda: run(make, inputs, tmp_path / "shared", shard=True, accumulate=2))
    assert_same_training(tmp_path / "shared", tmp_path / "whole", name)


def test_run_goes_on_with_other_numbers_of_ranks(inputs, tmp_path):
    """Alone, on two ranks, on two and then three that share the weights out, and alone again."""
    on = {"steps": 5}
    run(clip_stage, inputs, tmp_path / "alone", **on)
    run(clip_stage, inputs, tmp_path / "moved", stop=2, **on)
    on_ranks(2, lambda: run(clip_stage, inputs, tmp_path / "moved", stop=2, **on))
    on_ranks(2, lambda: run(clip_stage, inputs, tmp_path / "moved", stop=2, shard=True, **on))
    on_ranks(3, lambda: run(clip_stage, inputs, tmp_path / "moved", stop=2, shard=True, **on))
    run(clip_stage, inputs, tmp_path / "moved", **on)
    assert_same_training(tmp_path / "moved", tmp_path / "alone", "clip")


# --- embedding --------------------------------------------------------------------------------------------------------


def test_embedding_is_split_among_the_ranks(inputs, tmp_path, monkeypatch):
    """Two ranks encode half of the images and captions each, and both read what one alone computes."""
    stage = clip_stage(inputs)
    data = replace(inputs.validation.data, images=inputs.validation.data.images[:15])
    sizes = {"encode_image": [], "encode_text": []}
    for name, seen in sizes.items():
        method = getattr(CLIP, name)
        monkeypatch.setattr(CLIP, name, lambda self, x, m=method, seen=seen: (seen.append(len(x)), m(self, x))[1])

    def embedded(cache):
        images = embed_images(data, stage.model, "c" * 64, stage.tokenizer, stage.preprocess, CPU, cache)
        arrays = (images.embeddings, images.text_embeddings, images.tokens, images.token_starts)
        return [array.numpy() for array in arrays], {name: sum(seen) for name, seen in sizes.items()}

    found = on_ranks(2, lambda: embedded(tmp_path / "two"))
    expected, _ = embedded(tmp_path / "one")
    for arrays, counts in found:
        assert counts == {"encode_image": 8, "encode_text": len(data.captions) // 2}
        for one, other in zip(arrays, expected, strict=True):
            torch.testing.assert_close(torch.tensor(one), torch.tensor(other), atol=1e-5, rtol=1e-5)
    assert [path.name.partition("-")[0] for path in (tmp_path / "two").iterdir()] == ["embedded"]


# --- signs of life ----------------------------------------------------------------------------------------------------


def test_rank_that_falls_silent_is_named_once_and_one_that_is_done_is_not(monkeypatch, capsys):
    monkeypatch.setattr(heartbeat, "BEAT", 0.05)
    monkeypatch.setattr(heartbeat, "QUIET", 1.0)
    store = dist.HashStore()
    first, second, third = (heartbeat.Ranks(rank, 3, store) for rank in range(3))
    for ranks in (first, second):
        threading.Thread(target=ranks.listen, daemon=True).start()
    third.leave()
    time.sleep(1.2)
    assert not first.report_lost_rank()
    second.others = []  # gives no signs any more
    assert first.report_lost_rank()
    assert first.report_lost_rank()
    assert capsys.readouterr().err.count("error: another rank has ended (rank 1), so this one cannot go on") == 1
    first.leave()


def test_thread_that_learns_of_a_lost_rank_second_waits_until_it_is_told(monkeypatch, capsys):
    """Where one is in the midst of telling, another that returned would end the process before the line is out."""
    ranks = heartbeat.Ranks(0, 2, dist.HashStore())
    ranks.heard[1] -= heartbeat.QUIET + 1
    first_asked = threading.Event()

    def slowly() -> bool:
        first = ranks.store.add("errors told", 1) == 1
        if first:
            first_asked.set()
            time.sleep(0.3)
        return first

    monkeypatch.setattr(ranks, "may_report", slowly)
    thread = threading.Thread(target=ranks.report_lost_rank)
    thread.start()
    first_asked.wait()
    assert ranks.report_lost_rank()
    assert "another rank has ended (rank 1)" in capsys.readouterr().err
    thread.join()
