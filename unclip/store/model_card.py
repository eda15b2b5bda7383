"""A pipeline's model card: its README.md in the form of the Hugging Face Hub, a head in YAML above Markdown."""

import json
import shlex
from pathlib import Path
from typing import Any

from unclip.errors import UserError
from unclip.pipeline import UnCLIP
from unclip.store.checkpoint import Manifest
from unclip.store.hub import is_name

KNOWN_DATA = {
    "fashion-mnist": ("mit", "zalando-datasets/fashion_mnist"),
    "emoji": ("ofl-1.1", None),
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
"""Where evaluation.json has the figures of the card."""


def model_card(
    name: str,
    licence: str | None,
    manifests: dict[str, Manifest],
    pipe: UnCLIP,
    shape: tuple[int, int, int],
    report: dict[str, Any],
) -> str:
    """The card.

    Args:
        name: what the pipeline is opened by: OWNER/NAME, or its folder's name.
        licence: of the weights, as the Hub writes it; without one that of the data, where it is known.
        shape: height, width and channels of the images.
        report: what evaluation.json holds; it may be empty.
    """
    example = next((m.data["example"] for m in manifests.values() if "example" in m.data), "a caption")
    quoted = json.dumps(example, ensure_ascii=False)
    height, width, channels = shape
    images = f"{height}x{width} {'grey' if channels == 1 else 'colour'} images"
    return f"""---
{_head(name, licence, manifests, report)}
---

# {name.rpartition("/")[2]}

An [unCLIP](https://arxiv.org/abs/2204.06125) pipeline that draws {images} from captions: a CLIP, a diffusion prior from
captions to CLIP's image embeddings, and a diffusion decoder from these to pixels.

![Samples of captions of the training data; nothing is chosen by hand](samples.png)

    python sample.py --checkpoint {name} {shlex.quote(example)} --n 8

```python
from unclip import UnCLIP

pipe = UnCLIP.from_pretrained("{name}")
images = pipe([{quoted}], n=4).images  # uint8 (4, {height}, {width}, {channels})
```

## Data

{_data(manifests)}
## Recipe

Trained in turn, each stage with the ones before it frozen, by `train_clip.py`, `train_prior.py` and `train_decoder.py`.
Every setting is in the stage's `config.json`. The weights are stored in float16.

{_recipe(manifests, pipe)}
## Figures

{_figures(manifests, report)}"""


def is_report_of(manifests: dict[str, Manifest], report: Any, path: Path) -> bool:
    """Whether a report is of just these weights. Raises UserError for one that lacks what the card shows of it."""
    try:
        evaluated = {name: stage["sha256"] for name, stage in report["stages"].items()}
        if evaluated != {name: manifest.sha256 for name, manifest in manifests.items()}:
            return False
        _figures({}, report)
        return True
    except (LookupError, TypeError, ValueError, AttributeError):
        raise UserError(
            f"{path} is not a whole report of this version; make it again with: python -m stages.evaluate --checkpoint "
            "DIR, or delete it"
        ) from None


def _head(name: str, licence: str | None, manifests: dict[str, Manifest], report: dict[str, Any]) -> str:
    from huggingface_hub import EvalResult, ModelCardData  # a second to import

    data = {m.data["name"].rpartition("/")[0] for m in manifests.values() if "name" in m.data}
    pretrained = manifests["clip"].training.get("pretrained")
    known = {KNOWN_DATA.get(one, ("unknown", one if is_name(one) else None)) for one in data}
    licences = {one for one, _ in known} if not pretrained else set()
    task, told = "text-to-image", report.get("data", {}).get("name", "")
    results = [
        EvalResult(task, told.rpartition("/")[0], told, what.lower().replace(" ", "_"), value, metric_name=what)
        for what, (value, _) in _evaluated(report).items()
    ]
    head = ModelCardData(
        license=licence or (licences.pop() if len(licences) == 1 else "unknown"),
        library_name="unclip",
        pipeline_tag=task,
        tags=["unclip", "dall-e-2", "clip", "diffusion"],
        datasets=sorted(on_hub for _, on_hub in known if on_hub) or None,
        base_model=pretrained if pretrained and is_name(pretrained) else None,
        model_name=name.rpartition("/")[2] if results else None,
        eval_results=results or None,
    )
    return head.to_yaml()


def _data(manifests: dict[str, Manifest]) -> str:
    rows = []
    for stage, m in manifests.items():
        own = (
            f"the pretrained {m.training['pretrained']}"
            if "pretrained" in m.training
            else m.data.get("name", "unknown")
        )
        rows.append(
            [
                stage,
                own,
                f"`{m.data['fingerprint'][:12]}`" if "fingerprint" in m.data else "",
                m.data.get("example", ""),
            ]
        )
    return _table(["stage", "trained on", "fingerprint", "such as"], rows)


def _recipe(manifests: dict[str, Manifest], pipe: UnCLIP) -> str:
    rows = []
    for stage, m in manifests.items():
        parameters = sum(parameter.numel() for parameter in pipe.parts[stage].parameters())
        train = m.training.get("train", {})
        own = [train.get(key, "") for key in ("batch_size", "lr", "muon_lr", "ema", "seed")]
        rows.append([stage, m.kind, f"{parameters / 1e6:.2f}M", m.step, *own, f"`{m.sha256[:12]}`"])
    heads = ["stage", "kind", "parameters", "steps", "batch size", "learning rate", "... of Muon", "EMA", "seed"]
    return _table([*heads, "SHA-256"], rows)


def _figures(manifests: dict[str, Manifest], report: dict[str, Any]) -> str:
    rows = [[stage, figure, f"{value:.4g}"] for stage, m in manifests.items() for figure, value in m.figures.items()]
    text = "On validation images, during training:\n\n" + _table(["stage", "figure", "value"], rows)
    if report:
        text += f"\nOf {report['samples']} samples, beside the images of {report['data']['name']}; in brackets 95% "
        text += "intervals. [The whole report](evaluation.md).\n\n"
        text += _table(["figure", "value"], [[figure, told] for figure, (_, told) in _evaluated(report).items()])
    return text


def _evaluated(report: dict[str, Any]) -> dict[str, tuple[float, str]]:
    """Figures of evaluation.json, each as a number and as text."""
    found = {}
    for what, way in FIGURES.items() if report else ():
        value = report
        for key in way:
            value = value[key]
        if isinstance(value, dict):
            found[what] = (
                value["value"],
                f"{100 * value['value']:.1f}% ({100 * value['low']:.1f}-{100 * value['high']:.1f})",
            )
        else:
            found[what] = value, f"{value:.3f}"
    return found


def _table(heads: list[str], rows: list[list[Any]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    cells = ([" ".join(str(cell).split()).replace("|", r"\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)
