"""The weights of exported models: in float16, and in files that several models share."""

import hashlib
from pathlib import Path
from typing import Any

SMALLEST_HALVED = 64
"""Numbers in the smallest tensor that is stored in float16; for smaller ones it would save nothing."""
ALIGNMENT = 64
"""Bytes; each weight begins at a multiple of it."""


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


class SharedWeights:
    """A file of weights that several models refer to; equal ones are in it once."""

    def __init__(self, path: Path):
        self.path = path
        self.content = bytearray()
        self.places: dict[bytes, int] = {}

    def take(self, model: Any) -> None:
        """Move a model's float16 weights here."""
        from onnx import TensorProto
        from onnx.external_data_helper import set_external_data

        for weight in model.graph.initializer:
            if weight.data_type == TensorProto.FLOAT16:
                place = self._place(weight.raw_data)
                set_external_data(weight, self.path.name, place, len(weight.raw_data))
                weight.ClearField("raw_data")

    def _place(self, data: bytes) -> int:
        key = hashlib.sha256(data).digest()
        if key not in self.places:
            self.content += bytes(-len(self.content) % ALIGNMENT)
            self.places[key] = len(self.content)
            self.content += data
        return self.places[key]

    def write(self) -> None:
        self.path.write_bytes(self.content)
