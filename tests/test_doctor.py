"""The doctor: each rule names the illness that it is for, and all of them leave healthy pipelines alone."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, edit, made_up_data
from PIL import Image

from stages.data_config import DataConfig
from stages.doctor.evidence import Evidence
from stages.doctor.examination import RULES, after_training, describe, examine, verdict_of
from unclip.layers import EmbeddingScaler
from unclip.registry import PARTS
from unclip.store.manifest import Manifest
from unclip.store.parts import load_part, save_part

# --- one illness at a time, in evidence that is made up ---------------------------------------------------------------


@pytest.fixture(scope="module")
def made_up():
    return made_up_data(400, seed=0), made_up_data(100, seed=1)


@pytest.fixture
def evidence(made_up) -> Evidence:
    """The evidence of a healthy pipeline."""
    generator = torch.Generator().manual_seed(0)
    train, validation = made_up
    labels = validation.labels
    centres = F.normalize(torch.randn(10, 64, generator=generator), dim=1)

    def near(rows, *shape):
        return F.normalize(centres[rows] + 0.08 * torch.randn(*shape, 64, generator=generator), dim=-1)

    embeddings = near(labels, 100)
    scaler = EmbeddingScaler(64).fit(embeddings)
    drawn = torch.arange(16)
    real = validation.images[drawn]
    options = {"steps": 1000, "warmup": 50, "ema": 0.99}
    manifests = {
        part: Manifest(part, parents=parents, sha256=part, complete=True, training={"train": options} | drops)
        for part, parents, drops in (
            ("clip", {}, {}),
            ("prior", {"clip": "clip"}, {"drop": 0.1}),
            ("decoder", {"clip": "clip"}, {"drop_image": 0.1, "drop_text": 0.5}),
        )
    }
    rates = [0.5, 1, 0.9, 0.75, 0.5, 0.3, 0.1, 0.01]
    losses = [0.9, 0.5, 0.4, 0.3, 0.25, 0.23, 0.22, 0.22]
    log = [
        {"step": 100 * i, "lr": rate, "loss": loss, "chance_loss": 1.0, "validation/loss": loss}
        for i, (rate, loss) in enumerate(zip(rates, losses, strict=True), 1)
    ]
    made = object.__new__(Evidence)
    vars(made).update(
        manifests=manifests,
        config=SimpleNamespace(source="fashion-mnist"),
        data=(train, validation),
        rows=torch.arange(100),
        groups=labels,
        differ=labels[:, None] != labels,
        embeddings=embeddings,
        text=SimpleNamespace(embedding=centres[labels]),
        models={
            "prior": SimpleNamespace(scaler=scaler),
            "decoder": SimpleNamespace(network=SimpleNamespace(image_condition=SimpleNamespace(scaler=scaler))),
        },
        prior_draws=near(labels[:48, None].expand(-1, 3), 48, 3),
        drawn=drawn,
        real_images=real,
        drawn_from_embeddings=(real.float() + torch.randn(real.shape, generator=generator)).clamp(0, 255).byte(),
        drawn_from_captions=real,
        lines={part: [dict(line) for line in log] for part in manifests},
    )
    made.log = made.lines.get
    return made


def two_captions(e):
    vars(e).update(data=(SimpleData(e.train.images, lambda rows, *_, **__: rows % 2), e.validation))


class SimpleData:
    """Images and how captions are drawn for them."""

    def __init__(self, images, draw=None):
        self.images = images
        self.draw = draw

    def __len__(self):
        return len(self.images)


def with_train(images):
    return lambda e: vars(e).update(data=(SimpleData(images(e), e.train.draw), e.validation))


def with_validation(images):
    return lambda e: vars(e).update(data=(e.train, SimpleData(images(e), e.validation.draw)))


def coloured(e):
    """Reddish images, whose validation split has red and blue swapped."""
    reddish = e.train.images.expand(-1, 3, -1, -1) // torch.tensor([1, 2, 4], dtype=torch.uint8)[:, None, None]
    vars(e).update(data=(SimpleData(reddish, e.train.draw), SimpleData(reddish[:100].flip(1) + 1, e.validation.draw)))


def drawn_swapped(e):
    reddish = e.real_images.expand(-1, 3, -1, -1) // torch.tensor([1, 2, 4], dtype=torch.uint8)[:, None, None]
    vars(e).update(real_images=reddish, drawn_from_embeddings=reddish.flip(1))


def drawn(make):
    return lambda e: vars(e).update(drawn_from_embeddings=make(e))


def noise(e):
    return torch.randint(0, 256, e.real_images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def grainy(e):
    flat = torch.zeros_like(e.real_images)
    flat[:, :, 8:20, 8:20] = torch.arange(100, 196, 6, dtype=torch.uint8)[:, None, None, None]
    vars(e).update(real_images=flat, drawn_from_embeddings=flat + noise(e) // 6)


def line(part, **changes):
    """Change figures of the last lines of a part's log, one value per line."""

    def change(e):
        for name, values in changes.items():
            for entry, value in zip(e.lines[part][-len(values) :], values, strict=True):
                entry[name.replace("validation_", "validation/")] = value

    return change


def options(part, **changes):
    return lambda e: e.manifests[part].training["train"].update(changes)


def manifest(part, **changes):
    return lambda e: vars(e.manifests[part]).update(changes)


def draws(make):
    return lambda e: vars(e).update(prior_draws=F.normalize(make(e), dim=-1))


def other_captions(e):
    """The draws of other captions."""
    return e.prior_draws.roll(1, dims=0)


ILLNESSES = [
    ("data", "captions differ", "mismatched", two_captions),
    ("data", "validation images are new", "leaking", with_validation(lambda e: e.train.images[:100] + 1)),
    ("data", "images show something", "mismatched", with_train(lambda e: torch.full_like(e.train.images, 99))),
    ("data", "pixels use their range", "mismatched", with_train(lambda e: e.train.images // 128)),
    ("data", "splits are of the same polarity", "mismatched", with_validation(lambda e: 255 - e.validation.images)),
    ("data", "splits have the same order of colours", "mismatched", coloured),
    ("prior", "parts are of one lineage", "mismatched", manifest("prior", parents={"clip": "another"})),
    ("prior", "the training has ended", "undertrained", manifest("prior", complete=False, step=300)),
    ("clip", "the loss is below chance", "undertrained", line("clip", loss=[0.97] * 8)),
    ("decoder", "the loss is below chance", "undertrained", line("decoder", loss=[0.9, 0.85, 0.8, 0.8, 0.8, 0.8])),
    ("prior", "the loss is below chance", "diverged", line("prior", loss=[3.0, 4.0, 5.0])),
    ("decoder", "the loss does not jump", "diverged", line("decoder", loss=[0.7, 0.3, 0.25])),
    ("prior", "the validation loss does not rise", "leaking", line("prior", validation_loss=[0.2, 0.25, 0.3])),
    ("clip", "the moving average is shorter than the run", "undertrained", options("clip", ema=0.9995)),
    ("decoder", "the learning rate rises in time", "undertrained", options("decoder", warmup=900)),
    ("prior", "the learning rate lasts to the end", "undertrained", line("prior", lr=[1e-6] * 4)),
    ("clip", "the logit scale is free", "diverged", manifest("clip", figures={"logit_scale": 100.0})),
    ("clip", "images prefer their captions", "undertrained",
     lambda e: vars(e).update(text=SimpleNamespace(embedding=e.text.embedding.roll(1, dims=0)))),
    ("clip", "embeddings of images differ", "collapsed",
     lambda e: vars(e).update(embeddings=F.normalize(e.embeddings + 30 * e.embeddings[:1], dim=1))),
    ("prior", "embeddings are those of the training", "mismatched",
     lambda e: vars(e).update(embeddings=F.normalize(e.embeddings + 0.3, dim=1))),
    ("decoder", "embeddings are those of the training", "mismatched",
     lambda e: vars(e).update(embeddings=F.normalize(e.embeddings + 0.3, dim=1))),
    ("prior", "captions have draws of their own", "collapsed",
     draws(lambda e: e.prior_draws[:1, :1] + 0.02 * e.prior_draws)),
    ("prior", "draws for a caption differ", "collapsed",
     draws(lambda e: e.text.embedding[:48, None] + 0.01 * e.prior_draws)),
    ("prior", "draws follow the caption", "collapsed", draws(other_captions)),
    ("decoder", "images are like the data", "mismatched", drawn(lambda e: 255 - e.real_images)),
    ("decoder", "images are like the data", "mismatched", drawn_swapped),
    ("decoder", "images are like the data", "undertrained", drawn(noise)),
    ("decoder", "pixels stay in range", "diverged", drawn(lambda e: (e.real_images > 100).byte() * 255)),
    ("decoder", "images are no copies", "leaking", drawn(lambda e: e.train.images[:16])),
    ("decoder", "images show something", "collapsed", drawn(lambda e: torch.zeros_like(e.real_images))),
    ("decoder", "images follow the embedding", "collapsed", drawn(lambda e: e.real_images[:1].expand(16, -1, -1, -1))),
    ("decoder", "images follow the caption", "collapsed",
     lambda e: vars(e).update(drawn_from_captions=e.real_images[:1].expand(16, -1, -1, -1))),
    ("decoder", "flat areas are flat", "undertrained", grainy),
]  # fmt: skip


@pytest.mark.parametrize(("part", "rule", "verdict", "make"), ILLNESSES, ids=[f"{p}: {r}" for p, r, *_ in ILLNESSES])
def test_each_illness_is_named(part, rule, verdict, make, evidence):
    make(evidence)
    finding = examine(evidence, part)[rule]
    assert finding.verdict == verdict
    assert finding.figure
    assert finding.advice


def test_every_rule_has_its_illness():
    assert {rule.name for rule in RULES} == {name for _, name, *_ in ILLNESSES} | {"rows can be read"}


def test_nothing_is_wrong_with_healthy_evidence(evidence):
    for part in ("data", *evidence.manifests):
        assert examine(evidence, part) == {}


def test_a_loss_that_wavers_does_not_jump(evidence):
    """A part that is trained on gains less than its loss wavers from line to line."""
    wavering = [0.020, 0.016, 0.019, 0.023, 0.017, 0.021, 0.018, 0.016]
    evidence.lines["decoder"] = [{"step": i, "loss": loss} for i, loss in enumerate(wavering)]
    assert "the loss does not jump" not in examine(evidence, "decoder")
    evidence.lines["decoder"][-1]["loss"] = 0.05
    assert examine(evidence, "decoder")["the loss does not jump"].figure.startswith("at step 7 the loss jumps by")


@pytest.mark.parametrize("losses", [[2.3, 1.2, 0.9, 0.8, 2.2, 2.2, 2.2, 2.2], [2.3, 1.5, 1.0, 2.2, 2.2, 2.2]])
def test_a_jump_after_a_steep_fall_is_seen(losses, evidence):
    evidence.lines["decoder"] = [{"step": i, "loss": loss} for i, loss in enumerate(losses)]
    assert examine(evidence, "decoder")["the loss does not jump"].verdict == "diverged"


def test_the_gravest_illness_is_named_first(evidence):
    manifest("prior", complete=False)(evidence)
    manifest("prior", parents={"clip": "another"})(evidence)
    findings = examine(evidence, "prior")
    assert verdict_of(findings) == "mismatched, undertrained"
    assert len(findings) == 2


# --- pipelines in folders ---------------------------------------------------------------------------------------------


def test_data_that_are_mostly_broken_are_named(tmp_path, evidence):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(100):
        path = folder / f"{i}.png"
        Image.new("L", (8, 8), i).save(path)
        path.with_suffix(".txt").write_text(f"number {i}")
        if i % 5 < 2:
            path.write_bytes(b"no image")
    config = DataConfig(source=str(folder))
    vars(evidence).update(config=config, data=tuple(config.load("train", "validation")))
    assert examine(evidence, "data")["rows can be read"].verdict == "mismatched"


def test_a_tiny_pipeline_is_undertrained_first_of_all(trained, script):
    finished = script("stages.doctor.__main__", trained.folder)
    assert finished.code == 1, finished.err
    verdicts = dict(line.split(": ") for line in finished.out.splitlines() if not line.startswith(" "))
    assert verdicts["data"] == "healthy"
    assert verdicts["clip"].startswith("undertrained")
    assert verdicts["decoder"].startswith("undertrained")
    assert "  do: " in finished.out


def test_a_decoder_without_its_embedding_has_collapsed(copied):
    decoder, told = load_part(copied / "decoder")
    decoder.requires_grad_(False)
    for weight in decoder.network.image_condition.parameters():
        weight.zero_()
    save_part(copied / "decoder", decoder, told)
    found = examine(Evidence(copied), "decoder")
    assert found["images follow the embedding"].verdict == "collapsed"


def test_a_prior_of_another_clip_is_mismatched(copied):
    prior, told = load_part(copied / "prior")
    prior.scaler.mean.mul_(-1)
    save_part(copied / "prior", prior, told)
    assert examine(Evidence(copied), "prior")["embeddings are those of the training"].verdict == "mismatched"


def test_a_training_ends_with_a_line(trained, tmp_path):
    folder = shutil.copytree(trained.folder, tmp_path / "run")
    text = after_training(folder, "prior")
    assert text.startswith("prior: ")
    assert "\n" not in text
    path = folder / "prior" / "train" / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": i, "loss": 9.0, "chance_loss": 1.0}) + "\n" for i in range(1, 9)))
    assert "\n" not in (text := after_training(folder, "prior"))
    assert text.startswith("prior: diverged by its log: the loss ends at 9.0 times")


def test_a_training_without_weights_is_told(copied):
    shutil.rmtree(copied / "decoder")
    (copied / "decoder" / "train").mkdir(parents=True)
    lines = list(describe(copied))
    begun = lines.index("decoder: undertrained")
    assert "has saved weights" in lines[begun + 1]
    assert "lower learning rate" in lines[begun + 2]


def test_without_data_and_log_it_says_what_was_not_looked_at(copied):
    for part in ("clip", "prior", "decoder"):
        edit(copied / part, provenance={"source": "/nowhere/to/be/found"})
    lines = list(describe(copied))
    assert lines[-1].startswith("not looked at, as it is not here: train/metrics.jsonl, the training data")
    assert not any(line.startswith("data:") for line in lines)


@pytest.mark.parametrize("name", ["fashion-mnist", "emoji"])
def test_committed_pipelines_are_healthy(name, request):
    if name == "emoji":
        request.getfixturevalue("emoji_files")
    verdicts = [line for line in describe(ROOT / "checkpoints" / name) if not line.startswith("not looked at")]
    parts = [part for part in PARTS if (ROOT / "checkpoints" / name / part).is_dir()]
    assert verdicts == [f"{part}: healthy" for part in ("data", *parts)], verdicts
