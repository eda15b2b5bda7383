"""A small pipeline exported to ONNX, and variants of it."""

import shutil
from pathlib import Path

import onnx
import small_pipeline

from unclip import UnCLIP
from unclip.decoder.consistency_decoder import ConsistencyDecoder
from unclip.onnx.export import export_onnx
from unclip.prior import DiffusionPrior
from unclip.prior.reranking import Reranker
from unclip.registry import PARTS, default_kind
from unclip.store.checksums import file_sha256
from unclip.store.sealed_json import read_record, write_record

CAPTIONS = ["a bag", "a dark wide coat", "", "a sneaker"]
KINDS = {part: default_kind(part) for part in PARTS}


def export_small(folder: Path) -> None:
    """Write an untrained pipeline with an upsampler into folder/source, and exported into folder/small.

    Its decoder is its fast decoder too. Where parts have one network, that is exported once: each takes seconds.
    """
    source = small_pipeline.build(folder / "source", dim=16, exportable=True)
    out = folder / "small"
    description = export_onnx(source, out)
    shutil.copy(out / "decoder.weights", out / "fast_decoder.weights")
    for name in ("condition", "step"):
        model = onnx.load(out / f"decoder_{name}.onnx", load_external_data=False)
        for entry in (entry for tensor in model.graph.initializer for entry in tensor.external_data):
            entry.value = entry.value.replace("decoder.weights", "fast_decoder.weights")
        (out / f"fast_decoder_{name}.onnx").write_bytes(model.SerializeToString())
        description["weights"][f"fast_decoder_{name}"] = "fast_decoder.weights"
    description["files"] |= {path.name: file_sha256(path) for path in out.glob("fast_decoder*")}
    description["fast_decoder"] = description["decoder"] | {"kind": "consistency"}
    write_record(out / "lite.json", description)


def open_source(exported: Path) -> UnCLIP:
    """The pipeline that was exported, opened, with weights rounded to float16, as they are exported."""
    pipe = UnCLIP.from_pretrained(exported.parent / "source")
    for part in pipe.parts.values():
        for parameter in part.parameters():
            parameter.copy_(parameter.half().float())
    return with_parts(pipe, fast_decoder=converted(pipe.decoder, ConsistencyDecoder))


def converted(model, to, config=None):
    """The weights of a model in one of another class."""
    other = to(config or model.config).eval()
    other.load_state_dict(model.state_dict())
    return other.requires_grad_(False)


def with_parts(pipe, **parts):
    """A pipeline with other parts."""
    return UnCLIP(pipe.clip, pipe.tokenizer, pipe.preprocess, sampling=pipe.sampling,
                  **{name: part for name, part in (pipe.parts | parts).items() if name != "clip"})  # fmt: skip


def with_classes(pipe, captions, logit_scale):
    """The pipeline with a prior that knows these captions of classes."""
    prior = converted(pipe.prior, DiffusionPrior)
    prior.reranker = Reranker(pipe.clip.config.embed_dim, len(captions))
    prior.reranker.fit(pipe.encode_text(captions), logit_scale)
    return with_parts(pipe, prior=prior)


def altered(exported, folder, alter, **files):
    """A copy of an exported pipeline with another description, and files from another folder."""
    copy = shutil.copytree(exported, folder)
    description = read_record(copy / "lite.json")
    alter(description)
    for name, path in files.items():
        shutil.copy(path, copy / name)
        description["files"][name] = file_sha256(path)
    write_record(copy / "lite.json", description)
    return copy
