"""Embed a streamed data set with the CLIP of a pipeline: once, for the trainings of all other parts.

    python -m stages.embed --out checkpoints/mine

The embeddings of each shard are written beside it, or into data/cache if it lies on another machine. The same command
goes on after the shards that are embedded already. Under torchrun (-m stages.embed) each rank takes its own shards.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from data.provenance import inherit_source
from data.stream.streamed_images import StreamedImages
from stages import runtime
from stages.data_config import DataConfig
from stages.embed import clip_identity, embed_step
from stages.inputs import read_parent
from stages.stored_embeddings import StoredEmbeddings
from unclip.cli.options import parse, read_early_options
from unclip.clip import load_clip
from unclip.devices import Device
from unclip.errors import UserError


@dataclass(frozen=True)
class EmbedOptions:
    out: Path = Path("checkpoints/run")
    """Folder of the pipeline, whose CLIP is used."""
    data: DataConfig = field(default_factory=DataConfig)
    device: Device = "auto"
    """Where to compute: auto takes a GPU if there is one."""


def embed_shards(options: EmbedOptions) -> None:
    """Embed the shards that are not embedded yet. Raises UserError if the data is not streamed."""
    device = runtime.start(options.device)
    if not options.data.stream:
        raise UserError(f"{options.data.source} is not streamed (--data.stream); the trainings embed it by themselves")
    manifest = read_parent(options.out, "clip")
    clip, tokenizer, preprocess = load_clip(options.out)
    [images] = options.data.load_as(options.out, "train")
    assert isinstance(images, StreamedImages)
    stored = StoredEmbeddings(images.plan, clip_identity(clip, manifest.sha256, tokenizer))
    missing = stored.missing()
    runtime.print0(f"embedding {len(missing)} of {len(images.plan.shards)} shards into {stored.folder}")
    embed = partial(embed_step, clip=clip.to(device), tokenizer=tokenizer, preprocess=preprocess)
    runtime.barrier()  # all ranks have the same list
    for shard in missing[runtime.rank() :: runtime.world_size()]:
        count = stored.write(shard, embed)
        print(f"{shard.name}: {count} rows", flush=True)
    runtime.barrier()


def main(argv: Sequence[str] | None = None) -> None:
    named = read_early_options(argv)
    out = EmbedOptions.out if named.out is None else Path(named.out)
    embed_shards(parse(EmbedOptions, __doc__, EmbedOptions(out, inherit_source(out, DataConfig(), named.data)), argv))
