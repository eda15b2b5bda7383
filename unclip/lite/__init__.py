"""A runtime without PyTorch: draws from an exported pipeline with NumPy and ONNX Runtime.

    from unclip.lite import Lite
    images = Lite("exported")("an ankle boot", n=4, seed=0).images

`unclip export CHECKPOINT --to onnx` writes what it opens.
"""

from unclip.lite.pipeline import Lite

__all__ = ["Lite"]
