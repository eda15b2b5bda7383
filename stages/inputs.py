"""The training data of a part: captioned images and, for all parts but CLIP, the frozen CLIP's embeddings of them."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.dataset import CaptionedImages
from data.provenance import describe_source
from data.stream.streamed_images import StreamedImages
from stages import runtime
from stages.embed import EmbeddedImages, clip_identity, embed_images, embed_step
from stages.run_options import FrozenCLIPRun, PartRun, Shapes
from stages.stored_embeddings import StoredEmbeddings
from stages.streaming import StepStream
from unclip.clip import CLIPConfig, Tokenizer, encode_captions, load_clip
from unclip.clip.pretrained import adopt_clip, load_clip_bundle
from unclip.errors import UserError
from unclip.store.checksums import sha256
from unclip.store.hub import find_pipeline
from unclip.store.manifest import Manifest, read_manifest, training_command


@dataclass
class CLIPInputs:
    """Inputs of CLIP itself: captioned images and a tokenizer."""

    train: CaptionedImages
    validation: CaptionedImages
    tokenizer: Tokenizer
    provenance: dict[str, Any]
    """Where the images are from, as a manifest notes it."""
    stream: StepStream | None = None
    """The examples of each step, if they are streamed."""

    @property
    def parents(self) -> dict[str, str]:
        """SHA-256 of what the part is trained on, for its manifest."""
        return {"tokenizer": sha256(self.tokenizer.to_json().encode())}

    @property
    def files(self) -> dict[str, str]:
        """Files that the training puts into the pipeline's folder."""
        return {"tokenizer.json": self.tokenizer.to_json()}

    @property
    def data(self) -> CaptionedImages:
        """The training images."""
        return self.train

    @property
    def shapes(self) -> Shapes:
        images = {"image_size": self.train.image_size, "channels": self.train.channels}
        return Shapes(**images, vocab_size=self.tokenizer.vocab_size, eos_id=self.tokenizer.end_id)


@dataclass
class Inputs:
    """Inputs of all other parts: captioned images with the frozen CLIP's embeddings."""

    clip: CLIPConfig
    clip_sha256: str
    logit_scale: float
    """CLIP's factor on cosines."""
    class_embeddings: Tensor
    """Unit text embeddings (R, D) of the captions of the data's classes; none where there are fewer than two."""
    provenance: dict[str, Any]
    """Where the images are from, as a manifest notes it."""
    train: EmbeddedImages
    validation: EmbeddedImages
    files: dict[str, str]
    """Files that the training puts into the pipeline's folder."""
    decoder: Manifest | None = None
    """The manifest of the pipeline's decoder, for a part that is trained on it."""
    stream: StepStream | None = None
    """The examples of each step, if they are streamed; `train` is then a sample of them."""

    @property
    def parents(self) -> dict[str, str]:
        """SHA-256 of what the part is trained on, for its manifest."""
        return {"clip": self.clip_sha256} | ({"decoder": self.decoder.sha256} if self.decoder else {})

    @property
    def data(self) -> CaptionedImages:
        """The training images."""
        return self.train.data

    @property
    def shapes(self) -> Shapes:
        return Shapes(
            image_size=self.data.image_size,
            channels=self.data.channels,
            vocab_size=self.clip.text.vocab_size,
            eos_id=self.clip.text.eos_id,
            embed_dim=self.clip.embed_dim,
            text_width=self.clip.text.width,
            context=self.clip.text.context,
            num_classes=len(self.class_embeddings),
            decoder=self.decoder.model if self.decoder else None,
        )


def open_clip_inputs(run: PartRun, vocab_size: int) -> CLIPInputs:
    """Load the data, and train a tokenizer on its captions; for fine-tuning take the tokenizer of run.init_from."""
    start = find_pipeline(run.init_from) if run.init_from else None
    train, validation = run.data.load_as(start or run.out, "train", "validation")
    check_images_differ(train)
    check_captions_differ(train)
    if start:
        read_manifest(start / "clip")  # one of ours: another project's may lack a tokenizer
        tokenizer = load_clip_bundle(start).tokenizer
    else:
        tokenizer = Tokenizer.train(train.corpus, vocab_size)
    stream = StepStream(train) if isinstance(train, StreamedImages) else None
    return CLIPInputs(train, validation, tokenizer, describe_source(run.data, train.image_size), stream)


def check_captions_differ(data: CaptionedImages) -> None:
    """Raise UserError if the captions of a batch can never differ, so that there is nothing to learn."""
    rows = torch.arange(len(data))
    draws = (data.draw(rows, torch.Generator().manual_seed(seed), one_phrasing=True) for seed in range(8))
    if all(len(caption_ids.unique()) == 1 for caption_ids in draws):
        raise UserError(f"all images of {data.name} have the same captions; CLIP needs captions that tell them apart")


def check_images_differ(data: CaptionedImages) -> None:
    """Raise UserError if all images are the same, so that there is nothing to learn."""
    if all(torch.equal(image, data.images[0]) for image in data.images):  # ends at the first that differs
        raise UserError(f"all images of {data.name} have the same pixels; check the files with: python -m data.inspect")


def open_inputs(run: FrozenCLIPRun, device: torch.device, needs_decoder: bool = False) -> Inputs:
    """Load the data and the pipeline's CLIP, and embed the one with the other.

    Raises UserError if the pipeline has no CLIP, or no decoder that is needed, whose training has ended.
    """
    if run.clip:
        with runtime.main_first():
            adopt_clip(run.clip, run.out, run.clip_revision)
    manifest = read_parent(run.out, "clip")
    decoder = read_parent(run.out, "decoder") if needs_decoder else None
    clip, tokenizer, preprocess = load_clip(run.out)
    splits = run.data.load_as(run.out, "train", "validation")
    check_images_differ(splits[0])
    train, validation = (embed_images(split, clip, manifest.sha256, tokenizer, preprocess, device) for split in splits)
    stream = None
    if isinstance(train.data, StreamedImages):
        stored = StoredEmbeddings(train.data.plan, clip_identity(clip, manifest.sha256, tokenizer))
        online = partial(embed_step, clip=clip.to(device), tokenizer=tokenizer, preprocess=preprocess)
        if run.data.embed == "stored":
            stored.check_complete()
        stream = StepStream(train.data, stored if run.data.embed == "stored" else lambda images, _: online(images))
    class_captions = train.data.class_captions
    class_embeddings = torch.zeros(0, clip.config.embed_dim)
    if len(set(class_captions)) > 1:
        class_embeddings = encode_captions(clip, tokenizer, class_captions).embedding.cpu()
    return Inputs(
        clip=clip.config,
        clip_sha256=manifest.sha256,
        logit_scale=clip.scale().item(),
        class_embeddings=class_embeddings,
        provenance=describe_source(run.data, train.data.image_size),
        train=train,
        validation=validation,
        files={"captions.txt": spread_captions(train.data.captions)},
        decoder=decoder,
        stream=stream,
    )


def read_parent(pipeline: Path, part: str) -> Manifest:
    """The manifest of a part that another is trained on. Raises UserError unless its training has ended."""
    manifest = read_manifest(pipeline / part)
    if not manifest.complete:
        raise UserError(
            f"the {part} in {pipeline} is still in training (step {manifest.step}); "
            f"finish it with: {training_command(part, pipeline)}"
        )
    return manifest


def spread_captions(captions: list[str], count: int = 1000) -> str:
    """At most `count` captions, spread over all of them, one per line: for whoever looks into the pipeline later."""
    spread = (
        torch.linspace(0, len(captions) - 1, min(count, len(captions)), dtype=torch.float64).round().long().unique()
    )
    return "".join(f"{' '.join(captions[i].split())}\n" for i in spread.tolist())
