"""A pipeline's model card: its README.md in the form of the Hugging Face Hub, a head in YAML above Markdown."""

import json
import shlex
from pathlib import Path
from typing import Any

from unclip.errors import UserError
from unclip.pipeline import UnCLIP
from unclip.store.hub import is_hub_name
from unclip.store.manifest import Manifest
from unclip.store.markdown import one_line, plain, table
from unclip.store.readme import example_caption

KNOWN_DATA = {
    "fashion-mnist": ("mit", "zalando-datasets/fashion_mnist"),
    "emoji": ("ofl-1.1", None),
    "shapes": ("mit", None),
    "cifar10": ("unknown", "uoft-cs/cifar10"),
}
"""Licence, and name on the Hub, of the data sets that have a name here."""
FIGURES = {
    "zero-shot accuracy of CLIP": ("clip", "zero_shot"),
    "caption accuracy of samples": ("error_budget", "prior", "caption_accuracy"),
    "precision": ("error_budget", "prior", "precision"),
    "recall": ("error_budget", "prior", "recall"),
    "Fréchet distance": ("error_budget", "prior", "frechet"),
}
"""The figures that the card shows, and the keys that lead to them in evaluation.json."""
OPTIONAL_PARTS = {
    "fast_decoder": "a fast decoder, distilled from the decoder, which draws in one to four network calls",
    "upsampler": "an upsampler, which enlarges the decoder's images",
}
"""Optional parts in words."""


def model_card(
    name: str,
    licence: str | None,
    manifests: dict[str, Manifest],
    pipe: UnCLIP,
    shape: tuple[int, int, int],
    report: dict[str, Any],
) -> str:
    """The card's text.

    Args:
        name: the name that the pipeline is opened by: OWNER/NAME, or its folder's name.
        licence: licence of the weights in the Hub's spelling; None for the data's, where that is known.
        shape: height, width and channels of the images.
        report: the content of evaluation.json; it may be empty.
    """
    example = one_line(example_caption(manifests))
    quoted = json.dumps(example, ensure_ascii=False)
    command = one_line(shlex.join(["python", "sample.py", "--checkpoint", name, example, "--n", "8"]))
    height, width, channels = shape
    images = f"{height}x{width} {'grey' if channels == 1 else 'colour'} images"
    return f"""---
{_head(name, licence, manifests, report)}
---

# {plain(name.rpartition("/")[2])}

An [unCLIP](https://arxiv.org/abs/2204.06125) pipeline that draws {images} from captions: a CLIP, a diffusion prior from
captions to CLIP's image embeddings, and a diffusion decoder from these to pixels.{_optional_parts(manifests)}

![Samples of captions of the training data; nothing is chosen by hand](samples.png)

    {command}

```python
from unclip import UnCLIP

pipe = UnCLIP.from_pretrained({json.dumps(name, ensure_ascii=False)})
images = pipe([{quoted}], n=4).images  # uint8 (4, {height}, {width}, {channels})
```

## Data

{_data(manifests)}
## Recipe

Trained in turn, each part with the ones before it frozen, by `train_clip.py`, `train_prior.py` and `train_decoder.py`;
optional parts by `python -m stages.train`. Every setting is in the part's `config.json`. The weights are stored in
float16.

{_recipe(manifests, pipe)}
## Figures

{_figures(manifests, report)}"""


def _optional_parts(manifests: dict[str, Manifest]) -> str:
    """A sentence on the optional parts; nothing if there are none."""
    present = [words for part, words in OPTIONAL_PARTS.items() if part in manifests]
    return f" It also has {' and '.join(present)}." if present else ""


def is_report_of(manifests: dict[str, Manifest], report: Any, path: Path) -> bool:
    """Whether a report is of these very weights. Raises UserError if it lacks a figure that the card shows."""
    try:
        evaluated = {name: part["sha256"] for name, part in report["stages"].items()}
        if evaluated != {name: manifest.sha256 for name, manifest in manifests.items()}:
            return False
        _figures({}, report)
        if not report.get("only"):
            return True
        raise LookupError("a report of some evaluators alone")
    except (LookupError, TypeError, ValueError, AttributeError):
        raise UserError(
            f"{path} is not a whole report of this version; make it again with: python -m stages.evaluate --checkpoint "
            "DIR, or delete it"
        ) from None


def _head(name: str, licence: str | None, manifests: dict[str, Manifest], report: dict[str, Any]) -> str:
    from huggingface_hub import EvalResult, ModelCardData  # a second to import

    data = {m.data["name"].rpartition("/")[0] for m in manifests.values() if "name" in m.data}
    pretrained = manifests["clip"].training.get("pretrained")
    known = {KNOWN_DATA.get(name, ("unknown", name if is_hub_name(name) else None)) for name in data}
    licences = {licence for licence, _ in known} if not pretrained else set()
    task = "text-to-image"
    test_data = report.get("data", {}).get("name", "")
    results = [
        EvalResult(
            task, test_data.rpartition("/")[0], test_data, figure.lower().replace(" ", "_"), value, metric_name=figure
        )
        for figure, (value, _) in _evaluated(report).items()
    ]
    head = ModelCardData(
        license=licence or (licences.pop() if len(licences) == 1 else "unknown"),
        library_name="unclip",
        pipeline_tag=task,
        tags=["unclip", "dall-e-2", "clip", "diffusion"],
        datasets=sorted(on_hub for _, on_hub in known if on_hub) or None,
        base_model=pretrained if pretrained and is_hub_name(pretrained) else None,
        model_name=name.rpartition("/")[2] if results else None,
        eval_results=results or None,
    )
    return head.to_yaml()


def _data(manifests: dict[str, Manifest]) -> str:
    rows = []
    for part, m in manifests.items():
        trained_on = (
            f"the pretrained {m.training['pretrained']}"
            if "pretrained" in m.training
            else m.data.get("name", "unknown")
        )
        rows.append(
            [
                part,
                trained_on,
                m.data.get("fingerprint", "")[:12],
                m.data.get("example", ""),
            ]
        )
    return table(["part", "trained on", "fingerprint", "such as"], rows, ["fingerprint"])


def _recipe(manifests: dict[str, Manifest], pipe: UnCLIP) -> str:
    rows = []
    for part, m in manifests.items():
        parameters = sum(parameter.numel() for parameter in pipe.parts[part].parameters())
        train = m.training.get("train", {})
        settings = [train.get(key, "") for key in ("batch_size", "lr", "muon_lr", "ema", "seed")]
        rows.append([part, m.kind, f"{parameters / 1e6:.2f}M", m.step, *settings, m.sha256[:12]])
    heads = ["part", "kind", "parameters", "steps", "batch size", "learning rate", "... of Muon", "EMA", "seed"]
    return table([*heads, "SHA-256"], rows)


def _figures(manifests: dict[str, Manifest], report: dict[str, Any]) -> str:
    rows = [[part, figure, f"{value:.4g}"] for part, m in manifests.items() for figure, value in m.figures.items()]
    text = "On validation images, during training:\n\n" + table(["part", "figure", "value"], rows)
    if report:
        images = plain(report["data"]["name"])
        text += f"\nOn {plain(report['samples'])} samples, compared with the images of {images}; in brackets "
        text += "95% intervals. [The whole report](evaluation.md).\n\n"
        text += table(["figure", "value"], [[figure, text] for figure, (_, text) in _evaluated(report).items()])
    return text


def _evaluated(report: dict[str, Any]) -> dict[str, tuple[float, str]]:
    """Figures of evaluation.json, each as a number and as text."""
    figures = {}
    for figure, keys in FIGURES.items() if report else ():
        value = report
        for key in keys:
            value = value[key]
        if isinstance(value, dict):
            share, low, high = (100 * value[key] for key in ("value", "low", "high"))
            figures[figure] = value["value"], f"{share:.1f}% ({low:.1f}-{high:.1f})"
        else:
            figures[figure] = value, f"{value:.3f}"
    return figures
