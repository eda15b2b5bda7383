"""Kinds of prior beside one another: trained with equal parameters for equal time, and judged."""
