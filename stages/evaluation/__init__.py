"""Measurements of a trained pipeline, part by part: one evaluator per file, all of them in the table of evaluate.py."""
