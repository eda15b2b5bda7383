"""Write a pipeline as ONNX files, weights in float16 and arithmetic in float32, and lite.json: how to sample."""

import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unclip.diffusion.process import VariancePreserving
from unclip.errors import UserError
from unclip.lite.description import DESCRIPTION, FORMAT
from unclip.onnx.networks import ExportedNetwork, check_kinds, networks_of
from unclip.onnx.weights import SharedWeights, halve_weights
from unclip.pipeline import UnCLIP
from unclip.store.checksums import file_sha256
from unclip.store.hub import find_pipeline
from unclip.store.manifest import read_manifests
from unclip.store.sealed_json import write_record


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
    kinds = {part: manifest.kind for part, manifest in read_manifests(folder).items()}
    check_kinds(kinds)
    pipe = UnCLIP.from_pretrained(folder)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        work = Path(temporary) / out.name
        work.mkdir()
        networks = networks_of(pipe, kinds)
        write_networks(networks, work)
        shutil.copy(folder / "tokenizer.json", work / "tokenizer.json")
        description = describe(pipe, kinds)
        description["weights"] = {name: f"{network.weights}.weights" for name, network in networks.items()}
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


def write_networks(networks: dict[str, ExportedNetwork], folder: Path) -> None:
    """Write networks as NAME.onnx, and beside them files of the weights that they share."""
    files = {name: SharedWeights(folder / f"{name}.weights") for name in {n.weights for n in networks.values()}}
    for name, network in networks.items():
        model = trace(network)
        halve_weights(model)
        files[network.weights].take(model)
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    for weights in files.values():
        weights.write()


def trace(network: ExportedNetwork) -> Any:
    """A network as an ONNX model whose batch is open."""
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
    remove_notes(model)
    return model


def remove_notes(model: Any) -> None:
    """Remove what only people read: names of source lines, and shapes in between."""
    del model.graph.value_info[:]
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]


def describe(pipe: UnCLIP, kinds: dict[str, str]) -> dict[str, Any]:
    """Everything about a pipeline that its networks do not hold."""
    parts: dict[str, Any] = pipe.parts
    prior = parts["prior"]
    reranker = prior.reranker
    tokenizer = pipe.tokenizer
    description: dict[str, Any] = {
        "format": FORMAT,
        "context": pipe.clip.config.text.context,
        "tokens": {"start": tokenizer.start_id, "end": tokenizer.end_id, "pad": tokenizer.pad_id},
        "image_shape": list(parts["decoder"].image_shape),
        "fit": pipe.fit,
        **{part: {"kind": kind, **describe_diffusion(parts[part])} for part, kind in kinds.items()},
        "sampling": asdict(pipe.sampling),
    }
    description["prior"] |= {
        "mean": prior.scaler.mean.tolist(),
        "std": prior.scaler.std.tolist(),
        "axes": shortened(prior.scaler.axes),
        "class_embeddings": reranker.class_embeddings.tolist(),
        "logit_scale": reranker.logit_scale.item(),
    }
    if "upsampler" in parts:
        description["upsampler"]["factor"] = parts["upsampler"].config.network.factor
    return description


def shortened(matrix: Tensor) -> list[list[float]]:
    """A float32 matrix, each number in as few digits as tell it from its neighbours."""
    return [[float(str(value)) for value in row] for row in matrix.cpu().numpy().astype(np.float32)]


def describe_diffusion(model: Any) -> dict[str, Any]:
    """The prediction of a model's network, and its process: the table of alpha^2, or none for the straight path.

    Nothing for a model that does not diffuse.
    """
    if not hasattr(model, "process"):
        return {}
    process = model.process
    table = process.alphas_cumprod.tolist() if isinstance(process, VariancePreserving) else None
    return {"prediction": model.config.diffusion.prediction, "alphas_cumprod": table}
