"""Write a pipeline as ONNX files, weights in float16 and arithmetic in float32, and lite.json: how to sample."""

import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from unclip.diffusion.process import VariancePreserving
from unclip.errors import UserError
from unclip.lite.description import DESCRIPTION, FORMAT
from unclip.onnx.networks import ExportedNetwork, networks_of
from unclip.pipeline import UnCLIP
from unclip.store.checksums import file_sha256
from unclip.store.hub import find_pipeline
from unclip.store.manifest import read_manifests
from unclip.store.sealed_json import write_record

SMALLEST_HALVED = 64
"""Numbers in the smallest tensor that is stored in float16; for smaller ones it would save nothing."""


def export_onnx(source: Path, out: Path) -> dict[str, Any]:
    """Write the networks of a pipeline, its tokenizer and their description into a folder. Returns the description.

    Args:
        source: folder of a pipeline, or its name on the Hub.
        out: folder to write; it must be empty, or not exist.

    Raises UserError for a folder that is not empty, for a kind of part that cannot be exported, and where a package is
    missing.
    """
    require_packages()
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; name another folder with --out")
    folder = find_pipeline(source)
    manifests = read_manifests(folder)
    pipe = UnCLIP.from_pretrained(folder)
    networks = networks_of(pipe, {part: manifest.kind for part, manifest in manifests.items()})
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        work = Path(temporary) / out.name
        work.mkdir()
        for name, network in networks.items():
            write_network(network, work / f"{name}.onnx")
        shutil.copy(folder / "tokenizer.json", work / "tokenizer.json")
        description = describe(pipe)
        description["files"] = {path.name: file_sha256(path) for path in sorted(work.iterdir())}
        write_record(work / DESCRIPTION, description)
        if out.exists():
            out.rmdir()
        work.rename(out)
    return description


def require_packages() -> None:
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError("exporting needs packages that are not installed: pip install 'unclip[onnx]'") from error


def write_network(network: ExportedNetwork, path: Path) -> None:
    import onnx

    for parameter in network.module.parameters():
        parameter.copy_(parameter.half().float())
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.onnx.export(
        network.module.eval(),
        tuple(network.inputs.values()),
        dynamo=True,
        input_names=list(network.inputs),
        output_names=[f"{name}_out" for name in network.outputs],  # operations have the plain names
        dynamic_shapes=tuple({0: batch} for _ in network.inputs),
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    halve_weights(model)
    remove_notes(model)
    onnx.save(model, str(path))


def halve_weights(model: Any) -> None:
    """Store in float16 all that float16 holds exactly, each followed by a conversion to float32.

    Those are the weights, transposed or not. Constants, such as the frequencies of the timestep embedding, and sums of
    weights keep their precision.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    casts = []
    for weight in list(graph.initializer):
        values = numpy_helper.to_array(weight)
        with np.errstate(over="ignore"):
            is_exact = weight.data_type == TensorProto.FLOAT and (values.astype("float16") == values).all()
        if not is_exact or values.size < SMALLEST_HALVED:
            continue
        halved = numpy_helper.from_array(values.astype("float16"), f"{weight.name}.half")
        casts.append(helper.make_node("Cast", [halved.name], [weight.name], to=TensorProto.FLOAT))
        graph.initializer.remove(weight)
        graph.initializer.append(halved)
    for node in reversed(casts):
        graph.node.insert(0, node)


def remove_notes(model: Any) -> None:
    """Remove what only people read: names of source lines, and shapes in between."""
    del model.graph.value_info[:]
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]


def describe(pipe: UnCLIP) -> dict[str, Any]:
    """Everything about a pipeline that its networks do not hold."""
    parts: dict[str, Any] = pipe.parts
    prior = parts["prior"]
    reranker = prior.reranker
    tokenizer = pipe.tokenizer
    return {
        "format": FORMAT,
        "context": pipe.clip.config.text.context,
        "tokens": {"start": tokenizer.start_id, "end": tokenizer.end_id, "pad": tokenizer.pad_id},
        "image_shape": list(parts["decoder"].image_shape),
        "prior": {
            **describe_diffusion(prior),
            "mean": prior.scaler.mean.tolist(),
            "std": prior.scaler.std.tolist(),
            "class_embeddings": reranker.class_embeddings.tolist(),
            "logit_scale": reranker.logit_scale.item(),
        },
        **{part: describe_diffusion(parts[part]) for part in ("decoder", "fast_decoder") if part in parts},
        "sampling": asdict(pipe.sampling),
    }


def describe_diffusion(model: Any) -> dict[str, Any]:
    """The prediction of a model's network, and its process: the table of alpha^2, or none for the straight path."""
    process = model.process
    table = process.alphas_cumprod.tolist() if isinstance(process, VariancePreserving) else None
    return {"prediction": model.config.diffusion.prediction, "alphas_cumprod": table}
