"""Export to ONNX: the networks as files that other runtimes compute, beside a description of how to sample."""
