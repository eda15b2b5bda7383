"""The evaluation as Markdown: tables that say how each figure was taken, and the pictures."""

import math
from typing import Any

TITLES = {
    "grid": "Samples",
    "attributes": "Class by attribute",
    "held-out": "Pairs that no training caption or image shows",
    "budget": "What drives the decoder",
    "memorisation": "Closest to the training images",
    "strip": "Denoising: the state above the clean image that is predicted from it",
}
FEW = 20
"""Classes that a table has room for."""
JUDGES = {
    "classifier": "A classifier judges, which was trained on the real training images alone.",
    "matcher": (
        "A sample is right if its own caption is the nearest of all {classes} that were asked for, to a small network\n"
        "that was trained on the real training images and their captions alone. How far it can be trusted is what it\n"
        "says of the real images."
    ),
}
OTHER_DATA = """
Not every stage was trained on just the training images of this data set: some may know what is taken here for unseen.
"""


def markdown(report: dict[str, Any], pictures: list[str]) -> str:
    """The text of evaluation.md, for what `stages.evaluation.evaluate.evaluate` returns. Its pictures are NAME.png."""
    word = "class" if report["judge"] == "classifier" else "caption"
    sections = [_head(report), _clip(report["clip"], word), _prior(report["prior"], word), _end_to_end(report, word)]
    if "held_out" in report:
        sections.append(_attributes(report["error_budget"]["prior"]["attributes"], report["held_out"]))
    sections += [_budget(report), _memorisation(report["memorisation"])]
    if "sweep" in report:
        sections.append(_sweep(report["sweep"]))
    sections += [f"## {TITLES[name]}\n\n![{TITLES[name]}]({name}.png)\n" for name in pictures]
    return "\n".join(sections)


def percent(figure: dict[str, float]) -> str:
    """A share with its interval: "93.1% (91.3-94.6)"; "-" if nothing was there to count."""
    return f"{short(figure)} ({100 * figure['low']:.1f}-{100 * figure['high']:.1f})" if figure["n"] else "-"


def short(figure: dict[str, float]) -> str:
    """A share alone: "93.1%"."""
    return f"{100 * figure['value']:.1f}%" if figure["n"] else "-"


def number(figure: dict[str, float], unit: float = 1, digits: int = 3) -> str:
    """A mean with half the width of its interval: "0.802 +- 0.004"; "-" if nothing was there to average."""
    if not figure["n"]:
        return "-"
    half = (figure["high"] - figure["low"]) / 2
    return f"{figure['value'] / unit:.{digits}f} ± {half / unit:.{digits}f}"


def times(distance: float, floor: float) -> str:
    """The one over the other, as text; of images that are all the same the floor is 0."""
    return f"{distance / floor:.1f}x" if floor > 0 else "-"


def table(heads: list[str], rows: list[list[Any]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def _head(report: dict[str, Any]) -> str:
    sampling = ", ".join(f"{key} {value}" for key, value in report["sampling"].items() if key != "batch_size")
    stages = ", ".join(f"{name} `{s['sha256'][:12]}` (step {s['step']})" for name, s in report["stages"].items())
    lost = report["lost"]
    return f"""# Evaluation of {report["checkpoint"]}

{stages}. Data: {report["data"]["name"]}. {report["samples"]} samples from seed {report["seed"]}; {sampling}.
Ran on {report["hardware"]}. In brackets or after ±: 95% intervals, over the samples; the training was run once.

**Weakest stage by accuracy: {lost["weakest_by_accuracy"]}; by Fréchet distance: {lost["weakest_by_frechet"]}.**
{"" if report["same_training_data"] else OTHER_DATA}"""


def _clip(figures: dict[str, Any], word: str) -> str:
    by_class = figures["zero_shot_by_class"]
    ensemble = ["zero-shot accuracy, ensemble of all phrasings", percent(figures["zero_shot"])]
    plain = "plain captions" if word == "class" else f"the nearest of {len(by_class)} captions"
    rows = [
        *([ensemble] if word == "class" else []),
        [f"zero-shot accuracy, {plain}", percent(figures["zero_shot_plain_caption"])],
        *([f"{name}, told apart", percent(figure)] for name, figure in figures.get("attributes", {}).items()),
        *([name.replace("_", " "), f"{100 * value:.1f}%"] for name, value in figures["recall"].items()),
        ["modality gap: distance between the centres of images and captions", f"{figures['modality_gap']:.3f}"],
    ]
    classes = table([f"zero-shot by {word}", *by_class], [["accuracy", *map(short, by_class.values())]])
    return f"""## CLIP, on {figures["images"]} test images

{table(["figure", "value"], rows)}
Recall is over the distinct captions of the test images, each with one of its own; the mean of a few such choices.

{classes if len(by_class) <= FEW else ""}"""


def _prior(figures: dict[str, Any], word: str) -> str:
    names = {"sample": "drawn", "ceiling": "another image of the caption", "text": "its text embedding",
             "unrelated": "drawn for another caption", "redrawn": "two draws for the caption"}  # fmt: skip
    rows = [
        [
            *(r["prior_num_candidates"], r["prior_guidance"], *(number(r[name]) for name in names)),
            *("-" if math.isnan(r["distance"]) else f"{r['distance']:.2f}", number(r["gap_closed"], 0.01, 0)),
        ]
        for r in figures["cosines"]
    ]
    plain = "its plain caption" if word == "class" else "it"
    return f"""## Prior, on {figures["cosines"][0]["sample"]["n"]} test pairs

Cosine to the true image embedding, and of two draws for a caption with each other:

{table(["draws", "guidance", *names.values(), "distance", "share of the gap closed (%)"], rows)}
The distance is that of the draws for a caption from its images, as distributions: 0 if they vary alike around the same
mean, 1 for a prior that draws nothing but each caption's mean image, more for one that is far off. It tells collapse
from success where captions say nearly all, too.

The gap lies between the text embedding, which needs no prior, and another real image of the caption. A prior that
draws as real images vary closes 100% of it; guidance, and choosing among several draws, may close more, at the
price of variety. At 0% the prior is of no use. "-": there is no gap to speak of, as captions say nearly all that images
show.

Spread of the embeddings of one {word} (1 - mean cosine): {number(figures["spread_of_draws"])} of draws for {plain},
{number(figures["spread_of_real"])} of real images. Much less than real is collapse; a little less is right, as guidance
and captions that say little favour what is average.
"""


def _end_to_end(report: dict[str, Any], word: str) -> str:
    reference, figures = report["reference"], report["error_budget"]["prior"]
    by_class, compared = figures["caption_accuracy_by_class"], (figures, reference["floor"], reference["noise"])
    deviations = (f"{f['frechet']:.3f} ± {1.96 * f['frechet_bootstrap_deviation']:.3f}" for f in compared)
    rows = [
        ["caption accuracy", percent(figures["caption_accuracy"]), percent(reference["classifier_accuracy"]), ""],
        ["Fréchet distance", *deviations],
        ["... over the floor", *(times(f["frechet"], reference["floor"]["frechet"]) for f in compared)],
        *([name, *(percent(f[name]) for f in compared)] for name in ("precision", "recall")),
    ]
    matrix = [[name, *row, short(by_class[name])] for name, row in zip(by_class, figures["confusion"], strict=True)]
    fid, tests = figures["inception_fid"], reference["test_images"]
    return f"""## End to end: caption to pixels

{table(["figure", "samples", "real images", "noise"], rows)}
{JUDGES[report["judge"]].format(classes=len(by_class))}
Real images: test images for the accuracy, as many training images{" of each class" if word == "class" else ""} as there
are samples for the rest. Distances are to the features of {tests} test images; precision and recall to
{min(tests, figures["n"])} of them. {"Of so few they say little." if tests < 100 else ""}
Standard FID: {f"{fid['value']:.2f}" if "value" in fid else "not taken, as " + fid["missing"]}.

{table(["asked for, and seen as", *by_class, "right"], matrix) if len(by_class) <= FEW else ""}"""


def _attributes(*parts: dict[str, Any]) -> str:
    seen, unseen = ([[k, percent(f["obeyed"]), percent(f["class"])] for k, f in part.items()] for part in parts)
    return f"""Attributes: samples that obey the rule of `data/fashion_mnist_captions.py` and how many are of the class.

{table(["asked", "obeyed", "class"], seen)}
{table(["asked, never shown in training", "obeyed", "class"], unseen)}"""


def _budget(report: dict[str, Any]) -> str:
    floor, lost = report["reference"]["floor"]["frechet"], report["lost"]
    heads = ["driven by", "caption accuracy", "Fréchet (over the floor)", "precision", "recall"]
    rows = []
    for way, f in report["error_budget"].items():
        frechet = f"{f['frechet']:.3f} ({times(f['frechet'], floor)})"
        rows.append([way, percent(f["caption_accuracy"]), frechet, short(f["precision"]), short(f["recall"])])
        if "held_out" in report:
            rows[-1].append(percent(f["attributes"]["all"]["obeyed"]) if "attributes" in f else "")
    half = lost["accuracy_lost_half_width"]
    points = ", ".join(f"{name} {100 * v:+.1f} ± {100 * half[name]:.1f}" for name, v in lost["accuracy_lost"].items())
    frechet = ", ".join(f"{stage} {added:+.3f}" for stage, added in lost["frechet_added"].items())
    return f"""## Error budget: what drives the decoder

{table([*heads, "attributes obeyed"] if "held_out" in report else heads, rows)}
Accuracy lost on the way, in points (negative: gained): {points}. The way leads from real images, judged, to their
embeddings, read zero-shot (clip), to images decoded from these (decoder), to images decoded from what the prior draws
for the same captions (prior). Fréchet distance added: {frechet}.
"""


def _memorisation(figures: dict[str, Any]) -> str:
    heads = ["in", "samples, median", "test images, median", "samples below the test images' 1st percentile"]
    rows = []
    for space, f in figures.items():
        medians = (f"{f[name]:.3f}" for name in ("samples_median", "test_median"))
        rows.append([space, *medians, percent(f["samples_below_test_1st_percentile"])])
    return f"## Memorisation: distance to the nearest training image\n\n{table(heads, rows)}"


def _sweep(rows: list[dict[str, Any]]) -> str:
    names = [name for name in rows[0] if name not in ("caption_accuracy", "frechet")]
    lines = [[*(r[name] for name in names), percent(r["caption_accuracy"]), f"{r['frechet']:.3f}"] for r in rows]
    return f"""## Sweep of the sampler's settings, on validation images

{rows[0]["caption_accuracy"]["n"]} samples each; best first, by the sum of the two ranks.

{table([*names, "caption accuracy", "Fréchet"], lines)}"""
