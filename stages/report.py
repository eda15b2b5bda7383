"""The evaluation as Markdown: tables that say how each figure was taken, and the pictures beside them."""

from typing import Any

TITLES = {
    "grid": "Samples of the plain captions",
    "attributes": "Class by attribute",
    "held-out": "Pairs that no training caption or image shows",
    "budget": "What drives the decoder",
    "memorisation": "Closest to the training images",
    "strip": "Denoising: the state above the clean image that is predicted from it",
}


FEW = 20
"""Classes that a table has room for."""
JUDGES = {
    "classifier": "Judged by a classifier that was trained on the real training images alone.",
    "the pipeline's own CLIP": (
        "The data has no classes: a sample is right if the pipeline's own CLIP finds its caption the nearest of all\n"
        "that were asked for. It is no independent judge."
    ),
}
OTHER_DATA = """
Not every stage was trained on just the training images of this data set: what is called never shown may have been.
"""


def markdown(report: dict[str, Any], pictures: list[str]) -> str:
    """The text of evaluation.md, for what `stages.evaluate.evaluate` returns. Its pictures are NAME.png."""
    sections = [
        _head(report),
        _clip(report["clip"]),
        _prior(report["prior"]),
        _end_to_end(report),
        _budget(report),
        _memorisation(report["memorisation"]),
    ]
    if "sweep" in report:
        sections.append(_sweep(report["sweep"]))
    sections.append("\n".join(f"## {TITLES[name]}\n\n![{TITLES[name]}]({name}.png)\n" for name in pictures))
    return "\n".join(sections)


def percent(figure: dict[str, float]) -> str:
    """A share with its interval: "93.1% (91.3-94.6)"; "-" if nothing was there to count."""
    if not figure["n"]:
        return "-"
    low, high = 100 * figure["low"], 100 * figure["high"]
    return f"{100 * figure['value']:.1f}% ({low:.1f}-{high:.1f})"


def number(figure: dict[str, float]) -> str:
    """A mean with half the width of its interval: "0.802 +- 0.004"; "-" if nothing was there to average."""
    if not figure["n"]:
        return "-"
    return f"{figure['value']:.3f} ± {(figure['high'] - figure['low']) / 2:.3f}"


def table(heads: list[str], rows: list[list[Any]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def _head(report: dict[str, Any]) -> str:
    sampling = ", ".join(f"{key} {value}" for key, value in report["sampling"].items() if key != "batch_size")
    stages = ", ".join(
        f"{name} `{entry['sha256'][:12]}` (step {entry['step']})" for name, entry in report["stages"].items()
    )
    lost = report["lost"]
    return f"""# Evaluation of {report["checkpoint"]}

{stages}. Data: {report["data"]["name"]}. {report["samples"]} samples from seed {report["seed"]}; {sampling}.
Ran on {report["hardware"]}. In brackets or after ±: 95% intervals, over the samples; the training was run once.

**Weakest stage by accuracy: {lost["weakest_by_accuracy"]}; by Fréchet distance: {lost["weakest_by_frechet"]}.**
{"" if report["same_training_data"] else OTHER_DATA}"""


def _clip(figures: dict[str, Any]) -> str:
    recall = [[name.replace("_", " "), f"{100 * value:.1f}%"] for name, value in figures["recall"].items()]
    rows = [
        ["zero-shot accuracy, ensemble of all phrasings", percent(figures["zero_shot"])],
        ["zero-shot accuracy, plain captions", percent(figures["zero_shot_plain_caption"])],
        *([f"{name}, told apart", percent(figure)] for name, figure in figures.get("attributes", {}).items()),
        *recall,
        ["modality gap: distance between the centres of images and captions", f"{figures['modality_gap']:.3f}"],
    ]
    by_class = {name: f"{100 * f['value']:.1f}%" for name, f in figures["zero_shot_by_class"].items()}
    classes = table(["zero-shot by class", *by_class], [["accuracy", *by_class.values()]])
    return f"""## CLIP, on {figures["images"]} test images

{table(["figure", "value"], rows)}
Recall is over the distinct captions of the test images, the mean of a few phrasings.

{classes if len(by_class) <= FEW else ""}"""


def _prior(figures: dict[str, Any]) -> str:
    names = {"sample": "drawn", "ceiling": "another image of the caption", "text": "its text embedding",
             "unrelated": "drawn for another caption"}  # fmt: skip
    rows = [[r["draws"], r["prior_guidance"], *(number(r[name]) for name in names)] for r in figures["cosines"]]
    n = figures["cosines"][0]["sample"]["n"]
    return f"""## Prior, on {n} test pairs

Cosine to the true image embedding:

{table(["draws", "guidance", *names.values()], rows)}
Spread of the embeddings of one class (1 - mean cosine): {number(figures["spread_of_draws"])} of draws for its plain
caption, {number(figures["spread_of_real"])} of real images. Much less than real is collapse; a little less is right,
as captions that say nothing of tone and width are those of average images more often.
"""


def times(distance: float, floor: float) -> str:
    """The one over the other, as text; of images that are all the same the floor is 0."""
    return f"{distance / floor:.1f}x" if floor > 0 else "-"


def _end_to_end(report: dict[str, Any]) -> str:
    reference, figures = report["reference"], report["error_budget"]["prior"]
    compared = (figures, reference["floor"], reference["noise"])
    classes = list(figures["caption_accuracy_by_class"])
    rows = [
        ["caption accuracy", percent(figures["caption_accuracy"]), percent(reference["classifier_accuracy"]), ""],
        ["Fréchet distance", *(f"{f['frechet']:.3f} ± {1.96 * f['frechet_bootstrap_deviation']:.3f}"
                               for f in compared)],
        ["... over the floor", *(times(f["frechet"], reference["floor"]["frechet"]) for f in compared)],
        *([name, *(percent(f[name]) for f in compared)] for name in ("precision", "recall")),
    ]  # fmt: skip
    matrix = [
        [name, *row, f"{100 * f['value']:.1f}%"]
        for row, (name, f) in zip(figures["confusion"], figures["caption_accuracy_by_class"].items(), strict=True)
    ]
    fid = figures["inception_fid"]
    return f"""## End to end: caption to pixels

{table(["figure", "samples", "real images", "noise"], rows)}
{JUDGES[report["judge"]]} Real images: test images for the accuracy, as many training
images (of each class) as there are samples for the rest. Distances are to the features of
{reference["test_images"]} test images; precision and recall to as many as there are samples ({figures["n"]}).
Standard FID: {f"{fid['value']:.2f}" if "value" in fid else "not taken, as " + fid["missing"]}.

{table(["asked for, and seen as", *classes, "right"], matrix) if len(classes) <= FEW else ""}
{_attributes(figures["attributes"], report["held_out"]) if "held_out" in report else ""}"""


def _attributes(seen: dict[str, Any], held_out: dict[str, Any]) -> str:
    rows, unseen = (
        [[name, percent(f["obeyed"]), percent(f["class"])] for name, f in part.items()] for part in (seen, held_out)
    )
    return f"""Attributes: how many samples obey the rule of `data/captions.py`, and how many are of the class.

{table(["asked", "obeyed", "class"], rows)}
{table(["asked, never shown in training", "obeyed", "class"], unseen)}"""


def _budget(report: dict[str, Any]) -> str:
    floor, lost = report["reference"]["floor"]["frechet"], report["lost"]
    rows = [
        [
            way,
            percent(f["caption_accuracy"]),
            f"{f['frechet']:.3f} ({times(f['frechet'], floor)})",
            f"{100 * f['precision']['value']:.1f}%",
            f"{100 * f['recall']['value']:.1f}%",
            percent(f["attributes"]["all"]["obeyed"]) if "attributes" in f else "",
        ]
        for way, f in report["error_budget"].items()
    ]
    heads = ["driven by", "caption accuracy", "Fréchet (over the floor)", "precision", "recall", "attributes obeyed"]
    points = ", ".join(
        f"{stage} {100 * loss:+.1f} ± {100 * lost['accuracy_lost_half_width'][stage]:.1f}"
        for stage, loss in lost["accuracy_lost"].items()
    )
    frechet = ", ".join(f"{stage} {added:+.3f}" for stage, added in lost["frechet_added"].items())
    return f"""## Error budget: what drives the decoder

{table(heads, rows)}
Accuracy lost on the way, in points (negative: gained): {points}. The way leads from the validation images whose
embeddings are the true ones, judged, to these embeddings, read zero-shot (clip), to images decoded from them (decoder),
to images decoded from what the prior draws for a plain caption (prior). Fréchet distance added: {frechet}.
"""


def _memorisation(figures: dict[str, Any]) -> str:
    rows = [
        [
            space,
            f"{f['samples_median']:.3f}",
            f"{f['test_median']:.3f}",
            percent(f["samples_below_test_1st_percentile"]),
        ]
        for space, f in figures.items()
    ]
    return f"""## Memorisation: distance to the nearest training image

{table(["in", "samples, median", "test images, median", "samples below the test images' 1st percentile"], rows)}"""


def _sweep(rows: list[dict[str, Any]]) -> str:
    names = [name for name in rows[0] if name not in ("caption_accuracy", "frechet")]
    lines = [
        [*(row[name] for name in names), percent(row["caption_accuracy"]), f"{row['frechet']:.3f}"] for row in rows
    ]
    return f"""## Sweep of the sampler's settings, on validation images

{rows[0]["caption_accuracy"]["n"]} samples each; best first, by the sum of the two ranks.

{table([*names, "caption accuracy", "Fréchet"], lines)}"""
