"""Made-up captioned images in every form that `--data` takes, sound and faulty."""

import csv
import json

import datasets
import numpy as np
import torch
from PIL import Image

from data.source_config import SourceConfig
from data.sources import load_splits
from data.splits import SPLITS

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}


def picture(number: int, size=(20, 20)) -> Image.Image:
    """A plain colour, of which each number has its own shade."""
    colour = list(COLOURS.values())[number % 3]
    return Image.new("RGB", size, tuple(c + number // 3 for c in colour))


def caption(number: int) -> str:
    return f"a {list(COLOURS)[number % 3]} square, number {number}"


def fill(folder, count: int, suffix: str = ".png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture(number).save(folder / f"{number:03d}{suffix}")


def with_jsonl(folder, count: int = 40, **changed) -> None:
    fill(folder, count)
    rows = [{"file_name": f"{n:03d}.png", "text": caption(n)} for n in range(count)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def with_csv(folder, count: int = 40) -> None:
    fill(folder, count)
    with open(folder / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file_name", "text"), *((f"{n:03d}.png", caption(n)) for n in range(count))])


def with_text_files(folder, count: int = 40) -> None:
    fill(folder, count, ".jpg")
    for number in range(count):
        (folder / f"{number:03d}.txt").write_text(caption(number) + "\n")


def with_npz(path, count: int = 40) -> None:
    images = np.stack([np.asarray(picture(n)) for n in range(count)])
    np.savez(path, images=images, captions=np.array([caption(n) for n in range(count)]))


def table(count: int = 40) -> datasets.Dataset:
    columns = {"image": [picture(n) for n in range(count)], "text": [caption(n) for n in range(count)]}
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())


def with_parquet(path, count: int = 40) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table(count).to_parquet(path)


def with_saved(path, count: int = 40) -> None:
    table(count).save_to_disk(path)


def everything(source, **options) -> dict[str, np.ndarray]:
    """The images of all splits by caption."""
    splits = load_splits(SourceConfig(str(source), **options), SPLITS)
    found = {}
    for data in splits:
        for row in range(len(data)):
            found[data.captions[data.draw(torch.tensor([row]), torch.default_generator)]] = data.images[row].numpy()
    assert sum(map(len, splits)) == len(found), "a row is in two splits"
    return found


def with_faults(folder) -> dict[str, str]:
    """A folder with one fault of each kind; {what a message must name: why}."""
    with_jsonl(folder, 40)
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    lines[0] = json.dumps({"file_name": "000.png"})
    lines[1] = json.dumps({"file_name": "001.png", "text": "  "})
    lines[2] = json.dumps({"file_name": "gone.png", "text": "a red square"})
    lines[3] = '{"file_name": "003.png", '
    lines[4] = json.dumps({"file_name": "004.png", "text": None})
    lines[5] = json.dumps({"file_name": "../outside.png", "text": "outside"})
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n[1]\n")
    picture(0).save(folder.parent / "outside.png")
    (folder / "006.png").write_bytes((folder / "006.png").read_bytes()[:60])
    (folder / "007.png").write_bytes(b"")
    return {
        "metadata.jsonl:1": "has no text", "metadata.jsonl:2 (001.png)": "has no caption",
        "metadata.jsonl:3 (gone.png)": "the file is missing", "metadata.jsonl:4": "is not JSON",
        "metadata.jsonl:5 (004.png)": "has no caption", "metadata.jsonl:6 (../outside.png)": "outside of the folder",
        "metadata.jsonl:41": "is not a JSON object", "006.png": "cannot be read", "007.png": "cannot be read",
        "002.png": "is not named", "003.png": "is not named", "005.png": "is not named",
    }  # fmt: skip
