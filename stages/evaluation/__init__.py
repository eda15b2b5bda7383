"""Measures a trained pipeline, stage by stage: one section per file, each a function of what it needs."""
