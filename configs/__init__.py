"""Presets: values only. tiny is for tests, quick for a laptop, base for one GPU, paper for a cluster."""
