"""captions.txt: some of the captions that a pipeline was trained on, one per line, for whoever looks into it later."""

from pathlib import Path

from unclip.store.manifest import read_manifests


def read_training_captions(pipeline: Path) -> list[str]:
    """The captions in a pipeline's captions.txt; without that file the example that its manifests name."""
    path = pipeline / "captions.txt"
    if path.is_file():
        return path.read_text(encoding="utf-8").splitlines()
    examples = [m.data["example"] for m in read_manifests(pipeline).values() if "example" in m.data]
    return examples[:1] or ["a picture"]
