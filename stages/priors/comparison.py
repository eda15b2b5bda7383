"""Train every row of the comparison for every seed, measure it, and go on where an earlier call was interrupted."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stages import loop, runtime
from stages.batches import draw_batch
from stages.data_config import DataConfig
from stages.embed import EmbeddedImages
from stages.evaluation.attributes import has_attributes, measure_held_out, measure_seen_attributes
from stages.evaluation.evaluate import EvaluateOptions, load_real_images, nan_to_none, prepare_context
from stages.evaluation.judge import judge_images
from stages.evaluation.reference import compare_with_reference
from stages.evaluation.section import EvaluationContext
from stages.identity import flatten_settings, settings
from stages.inputs import Inputs, open_inputs
from stages.loop import TrainConfig
from stages.optim import make_optimizers, update_ema
from stages.prior_figures import PHRASINGS
from stages.priors.embedding_measures import measure_draws
from stages.priors.rows import ALL_ROWS, ROWS, VARIANTS, Row
from stages.priors.table import tables
from stages.state import Progress, start_from
from unclip import UnCLIP
from unclip.clip import TextFeatures
from unclip.errors import UserError
from unclip.fields import bounded
from unclip.prior.autoregressive_prior import AutoregressivePrior
from unclip.prior.principal_components import PrincipalComponents
from unclip.registry import find_kind, resolve
from unclip.settings import Device, PriorSettings
from unclip.store.checksums import abbreviated
from unclip.store.files import write_atomically
from unclip.store.hub import find_pipeline
from unclip.store.manifest import Manifest, is_complete, read_manifests
from unclip.store.parts import load_part
from unclip.store.sealed_json import read_json, write_json

ROOT = Path(__file__).resolve().parents[2]
TIMED_STEPS = 30
"""Steps by which a row's speed is measured, after as many that are not."""
BATCH = 500
"""Embeddings drawn at once."""
ALIKE = PriorSettings(steps=20, spacing="karras", num_candidates=1)
"""How all priors are drawn from: neither guided nor reranked."""
RowName = Literal[
    "diffusion", "straight", "mlp", "one_pass", "autoregressive", "text_embedding", "text_decoder",
    "straight_x0", "v", "uniform", "by_coordinate", "whitened", "whole_captions", "no_regression", "larger",
]  # fmt: skip


@dataclass(frozen=True)
class ComparisonOptions:
    checkpoint: Path = ROOT / "checkpoints" / "fashion-mnist"
    """Pipeline whose CLIP the priors are trained on, and whose decoder draws for all of them."""
    rows: tuple[RowName, ...] = tuple(ROWS)  # type: ignore[assignment]
    """Rows of the table to train and measure; by default the kinds, without the ablations. Without autoregressive among
    them the likelihood of draws is not measured."""
    preset: str = "quick"
    """Size and learning rates of every prior. Their sizes are about equal; their steps follow from --seconds."""
    seconds: float = bounded(180.0, 0.1, 10**7)
    """Time of each training: processor time, of one thread, on a CPU."""
    seeds: int = bounded(3, 1, 100)
    """Trainings of each row."""
    samples: int = bounded(1000, 20, 10**6)
    """Images drawn for the figures with the decoder."""
    embeddings: int = bounded(4000, 50, 10**6)
    """Embeddings drawn for the figures without it, one for each of as many test images."""
    out: Path = Path("outputs/priors")
    """Folder for the trainings, their figures, and the tables. Another pipeline, and other options than rows and seeds,
    need another folder."""
    device: Device = "auto"
    """Where to train: auto takes a GPU if there is one."""
    data: DataConfig = field(default_factory=DataConfig)
    judge: TrainConfig = EvaluateOptions.judge
    """How the judge of the images is trained."""


class TextEmbedding(nn.Module):
    """In place of a prior: each caption's text embedding, as it is."""

    def draw_embeddings(self, text: TextFeatures, seeds: Sequence[int], settings: PriorSettings) -> Tensor:
        return text.embedding


@dataclass
class Pairs:
    """Real images of a split, each with a caption of its own."""

    embeddings: Tensor
    """Unit image embeddings (N, D)."""
    caption_ids: Tensor
    """(N,)."""

    @classmethod
    def choose(cls, images: EmbeddedImages, count: int) -> "Pairs":
        """At most `count` pairs, of which all that the data has are equally likely; captions of few phrasings.

        Within a phrasing captions of one meaning are one string, so that a caption has many images.
        """
        generator = torch.Generator().manual_seed(0)
        weights = images.data.pair_weights
        is_chosen = torch.rand(len(weights), generator=generator) * weights.max() < weights
        rows = torch.randperm(len(weights), generator=generator)
        rows = rows[is_chosen[rows]][:count]
        parts = [
            images.data.draw(part, torch.Generator().manual_seed(phrasing), one_phrasing=True)
            for phrasing, part in enumerate(rows.chunk(PHRASINGS))
        ]
        return cls(images.embeddings[rows], torch.cat(parts))


@dataclass
class Comparison:
    """All that the rows share: the options, the data, and the real images that draws are compared with."""

    options: ComparisonOptions
    device: torch.device
    folder: Path
    """The folder of the pipeline."""
    inputs: Inputs
    context: EvaluationContext

    @cached_property
    def real(self) -> Pairs:
        return Pairs.choose(self.context.embedded_test, self.options.embeddings)

    @cached_property
    def components(self) -> PrincipalComponents:
        components = PrincipalComponents(self.inputs.clip.embed_dim)
        components.fit(self.inputs.train.embeddings, 0.9999)
        return components

    @cached_property
    def scale(self) -> Tensor:
        return self.inputs.train.embeddings.std(dim=0).clamp(min=1e-8)

    @cached_property
    def judge(self) -> AutoregressivePrior | None:
        """The first seed's autoregressive prior, whose likelihood judges the draws of all; None without that row."""
        if "autoregressive" not in self.options.rows:
            return None
        return train_row(self, "autoregressive", 0)

    def measure(self, embeddings: Tensor, caption_ids: Tensor) -> dict[str, Any]:
        """Compare unit embeddings (N, D) of captions (N,) with the real images."""
        real = self.real
        figures = measure_draws(embeddings, real.embeddings, caption_ids, real.caption_ids, self.components, self.scale)
        if self.judge and (caption_ids >= 0).all():
            figures["log_likelihood"] = self.likelihood(self.judge, embeddings, caption_ids)
        return figures

    def likelihood(self, prior: AutoregressivePrior, embeddings: Tensor, caption_ids: Tensor) -> float:
        """The mean log-likelihood of unit embeddings (N, D) given captions (N,), in nats; of 2,000 of them at most."""
        terms = []
        for rows in torch.arange(len(embeddings))[:2000].split(BATCH):
            text = self.context.embedded_test.text_features(caption_ids[rows]).to(self.device)
            terms.append(prior.log_likelihood(embeddings[rows].to(self.device), text).cpu())
        return torch.cat(terms).mean().item()


def compare_priors(options: ComparisonOptions) -> str:
    """Train and measure all rows for one seed after the other. Returns the tables, and writes them to priors.md."""
    unknown = set(options.rows) - set(ALL_ROWS)
    if unknown:
        raise UserError(f"there is no row {min(unknown)!r}; choose from {', '.join(ALL_ROWS)}")
    comparison = prepare(options)
    check_same_settings(comparison)
    measure_floor(comparison)
    for seed in range(options.seeds):
        for name in options.rows:
            measure_row(comparison, name, seed)
        write_tables(options)
    measure_variants(comparison)
    text = write_tables(options)
    print(f"\n{text}")
    return text


def prepare(options: ComparisonOptions) -> Comparison:
    """Load and embed the images, and train the judge, unless that is cached."""
    device = runtime.start(options.device)
    folder = find_pipeline(options.checkpoint)
    run = replace(preset_of("prior", "diffusion", options), out=folder, data=options.data)
    inputs = open_inputs(run, device)
    evaluation = EvaluateOptions(
        checkpoint=folder, samples=options.samples, device=options.device, data=options.data, judge=options.judge
    )
    pipe = UnCLIP.from_pretrained(folder, device)
    pipe.sampling = pipe.sampling.override("faithful")
    real = load_real_images(evaluation)
    context = prepare_context(pipe, read_manifests(folder)["clip"].sha256, real, evaluation, {})
    return Comparison(options, device, folder, inputs, context)


def check_same_settings(comparison: Comparison) -> None:
    """Raise UserError if --out holds a comparison with other settings. Rows and seeds may be added to it."""
    options = comparison.options
    parts = read_manifests(comparison.folder)
    given = {
        "clip": abbreviated(parts["clip"].sha256),
        "decoder": abbreviated(parts["decoder"].sha256),
        "training data": abbreviated(comparison.inputs.data.fingerprint),
        "test data": abbreviated(comparison.context.embedded_test.data.fingerprint),
        "device": comparison.device.type,
        **{name: getattr(options, name) for name in ("preset", "seconds", "samples", "embeddings")},
        **flatten_settings(settings(options.judge), "judge."),
        **flatten_settings(asdict(comparison.context.pipe.sampling.decoder), "sampling."),
    }
    given = json.loads(json.dumps(given))  # as it is in the file: tuples are lists
    path = options.out / "settings.json"
    if not path.exists():
        if (options.out / "figures").exists():
            raise UserError(f"{options.out} holds a comparison by an earlier version; choose another --out")
        write_json(path, given)
    present = read_json(path)
    for name, value in given.items():
        if present.get(name) != value:
            raise UserError(
                f"{options.out} holds a comparison with {name} = {present.get(name)}, not {value}; choose another --out"
            )


def preset_of(part: str, kind: str, options: ComparisonOptions) -> Any:
    """A kind's options by the preset. Raises UserError if there is no such preset."""
    presets = resolve(find_kind(part, kind).presets)
    if options.preset not in presets:
        raise UserError(f"unknown preset {options.preset!r}; choose one of {', '.join(presets)}")
    return presets[options.preset]


# --- training ---------------------------------------------------------------------------------------------------------


def train_row(comparison: Comparison, name: str, seed: int) -> Any:
    """The trained model of a row, read from its folder if it is there."""
    row = ALL_ROWS[name]
    out = comparison.options.out / f"{name}-{seed}"
    if not (out / row.part / "config.json").exists() or not is_complete(out / row.part):
        steps = steps_of(comparison, name)
        run, stage = build_stage(comparison, row, out, seed, steps)
        inputs = comparison.inputs
        data = {"name": inputs.data.name, "fingerprint": inputs.data.fingerprint, "example": inputs.data.example}
        manifest = Manifest(row.part, row.kind, parents=inputs.parents, data=data, training=settings(run))
        loop.train(stage, run.train, comparison.device, out, manifest)
    return load_part(out / row.part)[0].to(comparison.device)


def build_stage(comparison: Comparison, row: Row, out: Path, seed: int, steps: int) -> tuple[Any, Any]:
    """The options and the training stage of a row; a decoder goes on from the pipeline's own weights."""
    run = row.change(preset_of(row.part, row.kind, comparison.options))
    decoder = comparison.context.pipe.decoder
    if row.part == "decoder":
        run = replace(run, model=decoder.config)
    train = replace(
        run.train,
        seed=seed,
        steps=steps,
        warmup=min(run.train.warmup, steps // 10),
        evaluate_every=max(1, steps // 3),
        preview_every=steps,
        save_every=max(1, steps // 10),
    )
    run = replace(run, out=out, data=comparison.options.data, train=train)
    stage_class = resolve(find_kind(row.part, row.kind).stage)
    with runtime.seeded(seed):
        model = stage_class.build_model(run, comparison.inputs.shapes)
    stage = stage_class(run, model, comparison.inputs, comparison.device)
    stage.fit_buffers()
    row.after_fit(model)
    if row.part == "decoder":
        scaler = {name: value.clone() for name, value in model.state_dict().items() if ".scaler." in name}
        start_from(model, comparison.folder, row.part)
        model.load_state_dict(scaler, strict=False)  # statistics of text embeddings, which it is to read
    return run, stage


def steps_of(comparison: Comparison, name: str) -> int:
    """The steps that a row takes in the options' time; measured once, as equal runs need equal numbers."""
    path = comparison.options.out / "steps.json"
    known: dict[str, int] = read_json(path) if path.exists() else {}
    if name not in known:
        known[name] = max(10, round(comparison.options.seconds / seconds_per_step(comparison, ALL_ROWS[name])))
        write_json(path, known)
    return known[name]


def seconds_per_step(comparison: Comparison, row: Row) -> float:
    run, stage = build_stage(comparison, row, comparison.options.out, 0, 2 * TIMED_STEPS)
    config = run.train
    model, average, objective = loop.place(stage, config, comparison.device)
    gradients = loop.make_gradients(objective, config, comparison.device)
    optimizers = make_optimizers(model, config.lr, config.weight_decay, config.betas, config.muon_lr)
    progress = Progress()
    began = 0.0
    for step in range(config.steps):
        if step == TIMED_STEPS:
            began = now(comparison.device)
        batch = draw_batch(stage, config, step).to(comparison.device)
        loop.take_step(config, batch, objective, gradients, optimizers, progress)
        update_ema(average, model, step, config.ema)
    return (now(comparison.device) - began) / TIMED_STEPS


def now(device: torch.device) -> float:
    """Seconds of this process's processor time on a CPU, where other work may run beside it; elsewhere of the clock."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


# --- measuring --------------------------------------------------------------------------------------------------------


def figures_path(options: ComparisonOptions, name: str) -> Path:
    return options.out / "figures" / f"{name}.json"


def measure_row(comparison: Comparison, name: str, seed: int) -> None:
    """Train a row, and write its figures, unless they are there. Without a training there is one seed only."""
    row = ALL_ROWS[name]
    path = figures_path(comparison.options, f"{name}-{seed}")
    if path.exists() or (seed and not row.part):
        return
    print(f"{row.label}, seed {seed}", flush=True)
    model = train_row(comparison, name, seed) if row.part else TextEmbedding().to(comparison.device)
    figures: dict[str, Any] = {}
    if row.part:
        figures["parameters"] = sum(parameter.numel() for parameter in model.parameters())
        figures["steps"] = steps_of(comparison, name)
    if row.part != "decoder":
        figures |= measure_without_decoder(comparison, model, ALIKE, seed)
    if isinstance(model, AutoregressivePrior):
        figures["real_log_likelihood"] = comparison.likelihood(
            model, comparison.real.embeddings, comparison.real.caption_ids
        )
    figures |= measure_with_decoder(comparison, model, row.part or "prior")
    write_json(path, nan_to_none(figures))


def measure_without_decoder(
    comparison: Comparison, prior: Any, prior_settings: PriorSettings, seed: int
) -> dict[str, Any]:
    """Draw an embedding for the caption of each real one, and compare them; with the seconds for 1,000 draws."""
    began = now(comparison.device)
    drawn = draw_all(comparison, prior, prior_settings, seed)
    seconds = 1000 * (now(comparison.device) - began) / len(drawn)
    return comparison.measure(drawn, comparison.real.caption_ids) | {"seconds": seconds}


def draw_all(comparison: Comparison, prior: Any, prior_settings: PriorSettings, seed: int) -> Tensor:
    caption_ids = comparison.real.caption_ids
    parts = []
    for rows in torch.arange(len(caption_ids)).split(BATCH):
        text = comparison.context.embedded_test.text_features(caption_ids[rows]).to(comparison.device)
        seeds = (rows + seed * len(caption_ids)).tolist()
        parts.append(prior.draw_embeddings(text, seeds, prior_settings).cpu())
    return torch.cat(parts)


def measure_with_decoder(comparison: Comparison, model: nn.Module, part: str) -> dict[str, Any]:
    """Draw images of the plain captions through one decoder, as the other evaluation does, and let the judge compare.

    Where captions can ask for attributes, also how many images show those that were asked for.
    """
    pipe = comparison.context.pipe
    pipe = UnCLIP(pipe.clip, pipe.tokenizer, pipe.preprocess, pipe.prior, pipe.decoder, pipe.sampling)
    setattr(pipe, part, model)
    if part == "decoder":
        pipe.prior = TextEmbedding().to(comparison.device)
    pipe.sampling = replace(pipe.sampling, prior=ALIKE)
    context = replace(comparison.context, pipe=pipe)
    samples = context.pipeline_samples
    reference = context.reference
    labels = torch.arange(reference.classes).repeat_interleave(context.samples_per_caption)
    scores, features = judge_images(reference.judge, samples.images)
    compared = compare_with_reference(features, reference)
    figures = {
        "right": (scores.argmax(dim=1) == labels).float().mean().item(),
        "image_frechet": compared["frechet"],
        "image_recall": compared["recall"]["value"],
    }
    if has_attributes(reference.data):
        seen = measure_seen_attributes(context, "prior", max(1, len(labels) // 100)).figures
        figures["attributes"] = seen["all"]["obeyed"]["value"]
        held_out = measure_held_out(context)
        figures["held_out"] = held_out.figures["all"]["obeyed"]["value"] if held_out else None
    return figures


def measure_floor(comparison: Comparison) -> None:
    """Write the figures of as many real training images in place of draws: what a perfect prior has."""
    path = figures_path(comparison.options, "real-0")
    train = comparison.inputs.train
    if path.exists():
        return
    same_captions = train.data.captions == comparison.context.embedded_test.data.captions
    pairs = Pairs.choose(train, len(comparison.real.caption_ids))
    nobody = torch.full_like(pairs.caption_ids, -1)
    figures = comparison.measure(pairs.embeddings, pairs.caption_ids if same_captions else nobody)
    write_json(path, nan_to_none(figures))


def measure_variants(comparison: Comparison) -> None:
    """Measure other ways to draw from the first autoregressive prior, without a decoder."""
    if "autoregressive" not in comparison.options.rows:
        return
    for name, changes in VARIANTS.items():
        path = figures_path(comparison.options, f"variant {name}")
        if not path.exists():
            prior: Any = train_row(comparison, "autoregressive", 0)
            if name == "bucket means":
                prior.config = replace(prior.config, draw_within=False)
            figures = measure_without_decoder(comparison, prior, replace(ALIKE, **changes), 0)
            write_json(path, nan_to_none(figures))


def write_tables(options: ComparisonOptions) -> str:
    """Write the tables of all figures that there are."""
    folder = options.out / "figures"
    figures = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    text = tables(figures)
    write_atomically(options.out / "priors.md", text)
    return text
