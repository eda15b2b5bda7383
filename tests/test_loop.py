"""The training loop, mostly on a stage that it was not written for: linear regression (toy.py)."""

from dataclasses import replace

import pytest
import torch
from conftest import contents, files_under
from ranks import on_ranks
from runs import CPU, assert_same_run, break_off, metrics
from toy import OFTEN_SAVED, SETTINGS, Line, LineStage, manifest, train

from stages import loop, runtime, state
from stages.clip import CLIPRun
from stages.data_config import DataConfig
from stages.identity import settings
from stages.optim import cosine_warmup
from unclip.errors import UserError
from unclip.store.checksums import sha256
from unclip.store.manifest import Manifest
from unclip.store.parts import load_part
from unclip.store.tensors import load_tensors

# --- training ---------------------------------------------------------------------------------------------------------


def test_loop_fits_a_line_without_knowing_what_a_stage_is(tmp_path):
    config = replace(SETTINGS, steps=300, lr=0.1, evaluate_every=100, preview_every=150)
    result = train(tmp_path, LineStage(noise=0.0), config)
    assert result.complete
    assert result.figures["error"] < 1e-3
    model, found = load_part(tmp_path / "line", Line)
    assert asdict_equal(found, result)
    torch.testing.assert_close(model.linear.weight, torch.tensor([[1.0, 2.0, 3.0]]), atol=0.05, rtol=0)
    assert files_under(tmp_path) == [
        "line/config.json", "line/model.safetensors", "line/train/curves.png", "line/train/lock",
        "line/train/metrics.jsonl", "line/train/preview-000150.png", "line/train/preview-000300.png",
        "line/train/run.json",
        "line/train/state-before.safetensors", "line/train/state.safetensors",
    ]  # fmt: skip


def asdict_equal(one: Manifest, other: Manifest) -> bool:
    return vars(one) == vars(other)


def test_metrics_follow_the_schedule_and_come_at_their_steps(tmp_path):
    train(tmp_path)
    lines = metrics(tmp_path)
    logged = [line for line in lines if "loss" in line]
    assert [line["step"] for line in logged] == [2, 4, 6, 8, 10, 12]
    for line in logged:
        expected = SETTINGS.lr * cosine_warmup(line["step"] - 1, SETTINGS.steps, SETTINGS.warmup)
        assert line["lr"] == pytest.approx(expected)
        assert line["grad_norm"] > 0
        assert line["drawn"] == SETTINGS.batch_size
    assert [line["step"] for line in lines if "validation/error" in line] == [4, 8, 12]


def test_figures_are_computed_at_the_steps_that_are_logged_alone(tmp_path):
    stage, steps = LineStage(), []
    stage.figures = lambda batch: steps.append(len(stage.batches)) or {"chance_loss": 1.0}
    train(tmp_path, stage, replace(SETTINGS, log_every=5))
    logged = [line for line in metrics(tmp_path) if "loss" in line]
    assert steps == [line["step"] for line in logged] == [4, 5, 8, 10, 12]
    assert all(line["chance_loss"] == 1 for line in logged)


def test_logged_loss_is_the_mean_since_the_last_line(tmp_path):
    stage, losses = LineStage(), []
    stage.objective.register_forward_hook(lambda _, __, loss: losses.append(loss.item()))
    train(tmp_path, stage)
    logged = [line["loss"] for line in metrics(tmp_path) if "loss" in line]
    assert logged == pytest.approx([(a + b) / 2 for a, b in zip(losses[::2], losses[1::2], strict=True)])


def test_gradient_is_clipped_to_its_largest_norm(tmp_path, monkeypatch):
    norms = []

    def recorded(model, lr, *_):
        optimizer = torch.optim.SGD([{"params": model.parameters(), "peak": lr}], lr=lr)
        step = optimizer.step
        optimizer.step = lambda: (norms.append(norm_of_gradient(model)), step())
        return [optimizer]

    monkeypatch.setattr(loop, "make_optimizers", recorded)
    train(tmp_path, config=replace(SETTINGS, clip_grad=0.25))
    assert len(norms) == 12
    assert norms == pytest.approx([0.25] * 12, rel=1e-3)


def norm_of_gradient(model) -> float:
    return torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()


def test_every_example_is_seen_equally_often(tmp_path):
    stage = LineStage()
    train(tmp_path, stage, replace(SETTINGS, steps=10))
    assert torch.cat(stage.batches).bincount().tolist() == [2] * 40


def test_saved_weights_are_the_moving_average_not_the_last(tmp_path):
    train(tmp_path, config=replace(SETTINGS, steps=4))
    weights, _ = load_tensors(tmp_path / "line" / "model.safetensors")
    state, _ = load_tensors(tmp_path / "line" / "train" / "state.safetensors")
    assert torch.equal(weights["linear.weight"], state["average.linear.weight"])
    assert not torch.equal(weights["linear.weight"], state["model.linear.weight"])


def test_moving_average_follows_the_slow_formula(tmp_path):
    stage, seen = LineStage(), []
    stage.objective.register_forward_hook(lambda *_: seen.append(stage.model.linear.weight.detach().clone()))
    train(tmp_path, stage, replace(SETTINGS, steps=4))
    state, _ = load_tensors(tmp_path / "line" / "train" / "state.safetensors")
    average = seen[0]
    for step, weight in enumerate([*seen[1:], state["model.linear.weight"]]):
        decay = min(SETTINGS.ema, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
    torch.testing.assert_close(state["average.linear.weight"], average)


def test_other_seed_is_another_run(tmp_path):
    train(tmp_path / "a")
    train(tmp_path / "b", config=replace(SETTINGS, seed=1))
    assert metrics(tmp_path / "a") != metrics(tmp_path / "b")


# --- interruption -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "call"), [("batch", 1), ("batch", 3), ("batch", 5), ("batch", 12), ("evaluate", 2), ("preview", 2)]
)
def test_interrupted_training_resumed_equals_uninterrupted(method, call, tmp_path):
    train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", break_off(LineStage(), method, call))
    train(tmp_path / "broken")
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_interrupted_training_with_muon_equals_uninterrupted(tmp_path):
    config = replace(SETTINGS, muon_lr=0.05)
    train(tmp_path / "whole", config=config)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", break_off(LineStage(), "batch", 6), config=config)
    train(tmp_path / "broken", config=config)
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
    states = [load_tensors(tmp_path / name / "line" / "train" / "state.safetensors")[0] for name in ("whole", "broken")]
    assert any(key.startswith("Muon.") for key in states[0])


def test_training_interrupted_again_and_again_equals_uninterrupted(tmp_path):
    train(tmp_path / "whole")
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "broken", break_off(LineStage(), "batch", 6))
    train(tmp_path / "broken")
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_resumed_training_does_not_repeat_saved_steps(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, break_off(LineStage(), "batch", 11))
    stage = LineStage()
    train(tmp_path, stage)
    assert len(stage.batches) == 12 - 8


def test_line_that_was_half_written_does_not_stop_a_resume(tmp_path):
    train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", break_off(LineStage(), "batch", 8))
    with open(tmp_path / "broken" / "line" / "train" / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "seco')  # the disk was full, or the power went
    train(tmp_path / "broken")
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.parametrize("call", [1, 2, 3])
def test_interruption_before_the_state_is_saved_is_made_good(call, tmp_path, monkeypatch):
    train(tmp_path / "whole")
    save, calls = state.save_state, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        save(*arguments)

    monkeypatch.setattr(state, "save_state", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken")
    train(tmp_path / "broken")
    for name in ("line/model.safetensors", "line/config.json"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("damage", [lambda c: c[: len(c) // 2], lambda c: b"", lambda c: b"\xff" * 50])
def test_damaged_state_without_one_before_is_refused(damage, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, break_off(LineStage(), "batch", 6))
    path = tmp_path / "line" / "train" / "state.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    assert not path.with_name("state-before.safetensors").exists()  # the first is saved at step 4
    with pytest.raises(UserError, match=r"state\.safetensors is damaged \(.*delete the folder"):
        train(tmp_path)


def test_completed_run_is_not_trained_again(tmp_path):
    first = train(tmp_path)
    before = contents(tmp_path)
    stage = LineStage()
    assert vars(train(tmp_path, stage)) == vars(first)
    assert stage.batches == []
    assert contents(tmp_path) == before
    with pytest.raises(UserError, match=r"--resume-with changes nothing; .* --init-from .*, choose another --out"):
        train(tmp_path, config=replace(SETTINGS, resume_with=0.01))


def test_best_weights_outlive_states_that_are_all_damaged(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, break_off(LineStage(), "batch", 6))
    path = tmp_path / "line" / "train" / "state.safetensors"
    path.write_bytes(b"")
    assert (tmp_path / "line" / "model.safetensors").exists()
    with pytest.raises(UserError, match=f"train on from them in another --out, with --init-from {tmp_path}; or delete"):
        train(tmp_path)


def test_a_run_that_failed_before_it_saved_anything_may_be_given_other_settings(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, break_off(LineStage(), "batch", 2))
    other = manifest(replace(SETTINGS, lr=0.5))
    assert train(tmp_path, described=other).training == other.training


@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_in_the_same_folder_are_refused_by_name(finished, tmp_path):
    if finished:
        train(tmp_path)
    else:
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, break_off(LineStage(), "batch", 6))  # the first state is saved at step 4
    before = contents(tmp_path)
    other = manifest(replace(SETTINGS, lr=0.5))
    with pytest.raises(UserError, match=r"holds a run with train\.lr = 0\.05, not 0\.5"):
        train(tmp_path, described=other)
    with pytest.raises(UserError, match=r"holds a run with data\.name = line, not circle"):
        train(tmp_path, described=replace(manifest(), data={"name": "circle"}))
    assert contents(tmp_path) == before


def test_folder_device_and_intervals_make_no_other_run():
    run = CLIPRun()
    intervals = dict.fromkeys(("log_every", "save_every", "preview_every", "evaluate_every"), 7)
    moved = replace(
        run,
        out=run.out / "x",
        preset="other",
        data=DataConfig(root=run.out),
        train=replace(run.train, device="cpu", **intervals),
    )
    assert settings(moved) == settings(run)
    assert settings(replace(run, vocab_size=5)) != settings(run)
    assert settings(replace(run, train=replace(run.train, seed=5))) != settings(run)


# --- the best weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("direction", "figures", "best"),
    [
        ("lowest", [3.0, 1.0, 2.0], 8),
        ("highest", [3.0, 1.0, 2.0], 4),
        ("highest", [1.0, 2.0, 3.0], 12),
        ("lowest", [1.0, 1.0, 1.0], 4),
    ],
)
def test_best_weights_are_kept_beside_the_last(direction, figures, best, tmp_path):
    stage, averages, given = LineStage(), {}, iter(figures)
    stage.best_is = ("error", direction)

    def evaluate(model):
        averages[4 * (len(averages) + 1)] = model.linear.weight.clone()
        return {"error": next(given)}

    stage.evaluate = evaluate
    result = train(tmp_path, stage)
    weights, _ = load_tensors(tmp_path / "line" / "model.safetensors")
    assert torch.equal(weights["linear.weight"], averages[best])
    assert (result.step, result.figures["error"], result.complete) == (best, figures[best // 4 - 1], True)
    assert sha256((tmp_path / "line" / "model.safetensors").read_bytes()) == result.sha256
    state, _ = load_tensors(tmp_path / "line" / "train" / "state.safetensors")
    assert torch.equal(state["average.linear.weight"], averages[12])


# --- what can go wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_stops_the_training(bad, tmp_path):
    stage = LineStage()
    stage.objective.register_forward_hook(lambda _, __, loss: loss * bad)
    with pytest.raises(UserError, match=rf"line: the loss is {bad} at step 1; .* lower .*, such as --train\.lr 0\.005"):
        train(tmp_path, stage)


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    stage = LineStage()
    stage.objective.register_forward_hook(lambda _, __, loss: loss * float("nan"))
    with pytest.raises(UserError, match="the loss is nan"):
        train(tmp_path, stage, replace(SETTINGS, log_every=12))
    assert not (tmp_path / "line" / "model.safetensors").exists()


def test_full_disk_stops_the_training_and_leaves_whole_files(tmp_path, full_disk):
    with pytest.raises(OSError, match="No space left"):
        train(tmp_path)
    assert files_under(tmp_path) == []


@pytest.mark.parametrize("name", ["steps", "batch_size", "evaluate_every", "preview_every", "log_every"])
def test_settings_out_of_range_are_refused_by_name(name):
    with pytest.raises(UserError, match=f"--train.{name.replace('_', '-')} must be from 1 to [0-9e+]+, not 0"):
        replace(SETTINGS, **{name: 0})


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"lr": float("nan")}, {"ema": 1.0}, {"seed": -1}])
def test_other_settings_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match=f"--train.{next(iter(wrong))} must be"):
        replace(SETTINGS, **wrong)


@pytest.mark.parametrize(
    ("name", "hopeless"),
    [
        ("lr", {"lr": 1e-11, "steps": 5000}),
        ("lr", {"lr": 1e-3, "warmup": 10**9, "steps": 1000}),
        ("weight_decay", {"weight_decay": 100.0}),
        ("weight_decay", {"muon_lr": 20.0}),
        ("clip_grad", {"clip_grad": 1e-9}),
    ],
)
def test_settings_at_which_no_weight_would_learn_are_refused(name, hopeless):
    with pytest.raises(UserError, match=f"--train.{name.replace('_', '-')} must be"):
        replace(SETTINGS, **hopeless)


# --- device, precision, ranks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("amx", "avx512"), [(True, False), (False, True), (False, False)])
def test_precision_follows_the_device(amx, avx512, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
    assert runtime.fast_bfloat16(torch.device("cuda"))
    with runtime.autocast(CPU, "auto"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == (torch.bfloat16 if amx or avx512 else torch.float32)
    with runtime.autocast(CPU, "bfloat16"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with runtime.autocast(CPU, "float32"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_two_ranks_train_to_the_weights_of_one(tmp_path):
    on_ranks(2, lambda: train(tmp_path / "two", config=OFTEN_SAVED))
    train(tmp_path / "one", config=OFTEN_SAVED)
    one, two = (load_tensors(tmp_path / n / "line" / "train" / "state.safetensors")[0] for n in ("one", "two"))
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=1e-5, rtol=1e-4)
    lines = metrics(tmp_path / "two")
    assert [line["step"] for line in lines] == [line["step"] for line in metrics(tmp_path / "one")]
    assert {line["drawn"] for line in lines if "drawn" in line} == {SETTINGS.batch_size / 2}
    losses = [[line["loss"] for line in metrics(tmp_path / name) if "loss" in line] for name in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4), "the loss of all ranks, not of the first one's share"
    assert files_under(tmp_path / "one") == files_under(tmp_path / "two")
