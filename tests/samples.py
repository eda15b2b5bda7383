"""Captions, quick settings, and how samples are compared."""

import numpy as np

BAG = "an image of a bag"
DRESS = "an image of a dress"
FEW = {"steps": 6, "prior_steps": 4}


def assert_same_images(one: np.ndarray, other: np.ndarray) -> None:
    """Equal to within rounding: at most one grey level apart."""
    assert one.shape == other.shape
    assert np.abs(one.astype(int) - other.astype(int)).max() <= 1


def differ(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.abs(one.astype(int) - other.astype(int)).mean() > 1)
