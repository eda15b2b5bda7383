"""The evaluation as Markdown: tables that say how each figure was taken, and the pictures."""

import math
from collections.abc import Iterator
from typing import Any

PICTURE_TITLES = {
    "grid": "Samples",
    "attributes": "Class by attribute",
    "held-out": "Pairs that no training caption or image shows",
    "budget": "Images by what drives the decoder",
    "memorisation": "Closest to the training images",
    "upsampling": "Real images, made small and enlarged again",
    "upsampling-noise": "The decoder's images, enlarged, by the noise on the small image (`--upscale-noise`)",
    "strip": "Denoising: the state above the clean image that is predicted from it",
}
MAX_TABLE_CLASSES = 20
"""A table by class is left out if there are more classes than this."""
FEW_TEST_IMAGES = 100
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
FORMATTED = ("reference", "clip", "prior", "error_budget", "held_out", "memorisation", "few_calls", "sweep")
"""Sections that this file formats. Those of any other evaluator are written as a plain table."""
NOT_SECTIONS = ("checkpoint", "stages", "data", "same_training_data", "judge", "samples", "seed", "sampling",
                "hardware", "only", "left_out", "lost", "seconds")  # fmt: skip


def markdown(report: dict[str, Any], pictures: list[str]) -> str:
    """Return the text of evaluation.md for the report that `stages.evaluation.evaluate.evaluate` returns.

    `pictures` are the names of the pictures beside it, without .png.
    """
    unit = "class" if report["judge"] == "classifier" else "caption"
    sections = [_head(report)]
    if "clip" in report:
        sections.append(_clip(report["clip"], unit))
    if "prior" in report:
        sections.append(_prior(report["prior"], unit))
    if "error_budget" not in report:
        sections.append(_real_images(report["reference"]))
    else:
        sections += [_end_to_end(report, unit), _error_budget(report)]
        if "attributes" in report["error_budget"]["prior"]:
            sections.append(_attributes(report["error_budget"]["prior"]["attributes"], "seen in training"))
    if "held_out" in report:
        sections.append(_attributes(report["held_out"], "never seen together in training"))
    if "memorisation" in report:
        sections.append(_memorisation(report["memorisation"]))
    if "few_calls" in report:
        sections.append(_few_calls(report["few_calls"]))
    if "sweep" in report:
        sections.append(_sweep(report["sweep"]))
    others = [name for name in report if name not in (*FORMATTED, *NOT_SECTIONS)]
    sections += [_plain_section(name, report[name]) for name in others]
    titles = {name: PICTURE_TITLES.get(name, name) for name in pictures}
    sections += [f"## {title}\n\n![{title}]({name}.png)\n" for name, title in titles.items()]
    return "\n".join(sections)


def percent(figure: dict[str, float]) -> str:
    """Format a share with its interval: "93.1% (91.3-94.6)"; "-" if there was nothing to count."""
    if not figure["n"]:
        return "-"
    return f"{percent_alone(figure)} ({100 * figure['low']:.1f}-{100 * figure['high']:.1f})"


def percent_alone(figure: dict[str, float]) -> str:
    """Format a share without its interval: "93.1%"; "-" if there was nothing to count."""
    return f"{100 * figure['value']:.1f}%" if figure["n"] else "-"


def number(figure: dict[str, float], unit: float = 1, digits: int = 3) -> str:
    """Format a mean with half the width of its interval: "0.802 ± 0.004"; "-" if there was nothing to average."""
    if not figure["n"]:
        return "-"
    half_width = (figure["high"] - figure["low"]) / 2
    return f"{figure['value'] / unit:.{digits}f} ± {half_width / unit:.{digits}f}"


def over_floor(distance: float, floor: float) -> str:
    """Format a distance as a multiple of its floor: "2.7x"; "-" for a floor of 0, where all images are the same."""
    return f"{distance / floor:.1f}x" if floor > 0 else "-"


def table(heads: list[str], rows: list[list[Any]]) -> str:
    """Format a Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def _head(report: dict[str, Any]) -> str:
    sampling = ", ".join(f"{name} {value}" for name, value in report["sampling"].items() if name != "batch_size")
    stages = ", ".join(
        f"{name} `{stage['sha256'][:12]}` (step {stage['step']})" for name, stage in report["stages"].items()
    )
    weakest = ""
    if "lost" in report:
        by_accuracy = report["lost"]["weakest_by_accuracy"]
        by_frechet = report["lost"]["weakest_by_frechet"]
        weakest = f"**Weakest stage by accuracy: {by_accuracy}; by Fréchet distance: {by_frechet}.**"
    left_out = ", ".join(f"{name} (needs {needs})" for name, needs in report["left_out"].items())
    only = ", ".join(report["only"])
    return f"""# Evaluation of {report["checkpoint"]}

{stages}. Data: {report["data"]["name"]}. {report["samples"]} samples from seed {report["seed"]}; {sampling}.
Ran on {report["hardware"]}. In brackets or after ±: 95% intervals, over the samples; the training was run once.
{f"Left out: {left_out}." if left_out else ""}{f"Only {only} and the floors." if only else ""}

{weakest}
{"" if report["same_training_data"] else OTHER_DATA}"""


def _clip(figures: dict[str, Any], unit: str) -> str:
    by_class = figures["zero_shot_by_class"]
    plain = "plain captions" if unit == "class" else f"the nearest of {len(by_class)} captions"
    rows = []
    if unit == "class":
        rows.append(["zero-shot accuracy, ensemble of all phrasings", percent(figures["zero_shot"])])
    rows.append([f"zero-shot accuracy, {plain}", percent(figures["zero_shot_plain_caption"])])
    rows += [[f"{name}, told apart", percent(figure)] for name, figure in figures.get("attributes", {}).items()]
    rows += [[name.replace("_", " "), f"{100 * value:.1f}%"] for name, value in figures["recall"].items()]
    rows.append(["modality gap: distance between the centres of images and captions", f"{figures['modality_gap']:.3f}"])
    classes = table([f"zero-shot by {unit}", *by_class], [["accuracy", *map(percent_alone, by_class.values())]])
    return f"""## CLIP, on {figures["images"]} test images

{table(["figure", "value"], rows)}
Recall is taken over the distinct captions of the test images, where each image has one caption; it is the mean over a
few such choices.

{classes if len(by_class) <= MAX_TABLE_CLASSES else ""}"""


def _prior(figures: dict[str, Any], unit: str) -> str:
    cosines = {
        "sample": "sampled",
        "ceiling": "another image of the caption",
        "text": "its text embedding",
        "unrelated": "sampled for another caption",
        "redrawn": "two samples of the caption",
    }
    rows = []
    for row in figures["cosines"]:
        distance = "-" if math.isnan(row["distance"]) else f"{row['distance']:.2f}"
        settings = [row["prior_num_candidates"], row["prior_guidance"]]
        rows.append([*settings, *(number(row[name]) for name in cosines), distance, number(row["gap_closed"], 0.01, 0)])
    caption = "its plain caption" if unit == "class" else "it"
    return f"""## Prior, on {figures["cosines"][0]["sample"]["n"]} test pairs

Cosine to the true image embedding, and of two samples of a caption to each other:

{table(["candidates", "guidance", *cosines.values(), "distance", "share of the gap closed (%)"], rows)}
The distance is that between the samples of a caption and its images, as distributions: 0 if they vary alike around the
same mean, 1 for a prior that returns nothing but each caption's mean image, more for one that is far off. It tells
collapse from success even where captions say nearly all.

The gap lies between the text embedding, which needs no prior, and another real image of the caption. A prior whose
samples vary as real images do closes 100% of it; guidance, and reranking several candidates, may close more, at the
price of variety. At 0% the prior is of no use. "-": there is no gap to speak of, as captions say nearly all that images
show.

Spread of the embeddings of one {unit} (1 - mean cosine): {number(figures["spread_of_draws"])} of samples for {caption},
{number(figures["spread_of_real"])} of real images. Much less than real is collapse; a little less is right, as guidance
and captions that say little favour what is average.
"""


def _real_images(reference: dict[str, Any]) -> str:
    rows = [
        [name, f"{column['frechet']:.3f}", percent(column["precision"]), percent(column["recall"])]
        for name, column in (("training images (the floor)", reference["floor"]), ("noise", reference["noise"]))
    ]
    return f"""## Real images

The judge recognises {percent(reference["classifier_accuracy"])} of {reference["test_images"]} test images.

{table(["compared with them", "Fréchet distance", "precision", "recall"], rows)}"""


def _end_to_end(report: dict[str, Any], unit: str) -> str:
    reference = report["reference"]
    figures = report["error_budget"]["prior"]
    floor = reference["floor"]["frechet"]
    by_class = figures["caption_accuracy_by_class"]
    compared = (figures, reference["floor"], reference["noise"])
    frechet = [f"{column['frechet']:.3f} ± {1.96 * column['frechet_bootstrap_deviation']:.3f}" for column in compared]
    rows = [
        ["caption accuracy", percent(figures["caption_accuracy"]), percent(reference["classifier_accuracy"]), ""],
        ["Fréchet distance", *frechet],
        ["... over the floor", *(over_floor(column["frechet"], floor) for column in compared)],
        *([name, *(percent(column[name]) for column in compared)] for name in ("precision", "recall")),
    ]
    confusion = [
        [name, *counts, percent_alone(by_class[name])]
        for name, counts in zip(by_class, figures["confusion"], strict=True)
    ]
    confusion_heads = ["asked for, and seen as", *by_class, "right"]
    test_images = reference["test_images"]
    return f"""## End to end: caption to pixels

{table(["figure", "samples", "real images", "noise"], rows)}
{JUDGES[report["judge"]].format(classes=len(by_class))}
Real images: test images for the accuracy, as many training images{" of each class" if unit == "class" else ""} as there
are samples for the rest. Distances are to the features of {test_images} test images; precision and recall to
{min(test_images, figures["n"])} of them. {"So few images say little." if test_images < FEW_TEST_IMAGES else ""}

{table(confusion_heads, confusion) if len(by_class) <= MAX_TABLE_CLASSES else ""}"""


def _attributes(figures: dict[str, Any], which: str) -> str:
    rows = [[name, percent(figure["obeyed"]), percent(figure["class"])] for name, figure in figures.items()]
    return f"""## Attributes {which}

Samples that obey the rule of `data/fashion_mnist_captions.py`, and those of the right class.

{table(["asked", "obeyed", "class"], rows)}"""


def _error_budget(report: dict[str, Any]) -> str:
    floor = report["reference"]["floor"]["frechet"]
    lost = report["lost"]
    heads = ["driven by", "caption accuracy", "Fréchet (over the floor)", "precision", "recall"]
    has_attributes = "attributes" in report["error_budget"]["prior"]
    rows = []
    for driver, figures in report["error_budget"].items():
        accuracy = percent(figures["caption_accuracy"])
        frechet = f"{figures['frechet']:.3f} ({over_floor(figures['frechet'], floor)})"
        row = [driver, accuracy, frechet, percent_alone(figures["precision"]), percent_alone(figures["recall"])]
        if has_attributes:
            row.append(percent(figures["attributes"]["all"]["obeyed"]) if "attributes" in figures else "")
        rows.append(row)
    half_width = lost["accuracy_lost_half_width"]
    accuracy_lost = ", ".join(
        f"{stage} {100 * loss:+.1f} ± {100 * half_width[stage]:.1f}" for stage, loss in lost["accuracy_lost"].items()
    )
    frechet_added = ", ".join(f"{stage} {added:+.3f}" for stage, added in lost["frechet_added"].items())
    return f"""## Error budget: what drives the decoder

{table([*heads, "attributes obeyed"] if has_attributes else heads, rows)}
Accuracy lost on the way, in points (negative: gained): {accuracy_lost}.
The way leads from real images, judged, to their embeddings, read zero-shot (clip), to images decoded from these
embeddings (decoder), to images decoded from the prior's embeddings for the same captions (prior).
Fréchet distance added: {frechet_added}.
"""


def _memorisation(figures: dict[str, Any]) -> str:
    heads = ["in", "samples, median", "test images, median", "samples below the test images' 1st percentile"]
    rows = []
    for space, figure in figures.items():
        medians = (f"{figure[name]:.3f}" for name in ("samples_median", "test_median"))
        rows.append([space, *medians, percent(figure["samples_below_test_1st_percentile"])])
    return f"## Memorisation: distance to the nearest training image\n\n{table(heads, rows)}"


def _few_calls(figures: dict[str, Any]) -> str:
    heads = ["drawn by", "caption accuracy", "Fréchet", "precision", "recall", "seconds per image"]
    rows = [
        [
            name,
            percent(figure["caption_accuracy"]),
            f"{figure['frechet']:.3f}",
            percent_alone(figure["precision"]),
            percent_alone(figure["recall"]),
            f"{figure['seconds_per_image']:.3f}",
        ]
        for name, figure in figures.items()
    ]
    return f"## Fast decoder, from true embeddings, one candidate each\n\n{table(heads, rows)}"


def _sweep(rows: list[dict[str, Any]]) -> str:
    settings = [name for name in rows[0] if name not in ("caption_accuracy", "frechet")]
    lines = [
        [*(row[name] for name in settings), percent(row["caption_accuracy"]), f"{row['frechet']:.3f}"] for row in rows
    ]
    return f"""## Sweep of the sampler's settings, on validation images

{rows[0]["caption_accuracy"]["n"]} samples each; best first, by the sum of the two ranks.

{table([*settings, "caption accuracy", "Fréchet"], lines)}"""


def _plain_section(name: str, figures: Any) -> str:
    rows = [[" ".join(path), value] for path, value in _flatten(figures)]
    return f"## {name.replace('_', ' ').capitalize()}\n\n{table(['figure', 'value'], rows)}"


def _flatten(figures: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield every number of nested dictionaries and lists as text, with the names that lead to it."""
    if isinstance(figures, dict) and {"value", "low", "high", "n"} <= figures.keys():
        yield path, number(figures)
    elif isinstance(figures, (dict, list)):
        items = figures.items() if isinstance(figures, dict) else enumerate(figures, 1)
        for name, value in items:
            yield from _flatten(value, (*path, str(name)))
    else:
        yield path, f"{figures:.3f}" if isinstance(figures, float) else str(figures)
