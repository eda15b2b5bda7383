"""Tests that a process of its own runs: see test_devices.py."""

import numpy as np
import pytest
import torch
from fake_device import DEVICE, FakeDevice
from test_devices import build_random, draw_everything, open_pipeline


def test_library_runs_on_a_device_without_float64_and_some_operators(tmp_path):
    folder = build_random(tmp_path)
    expected = draw_everything(open_pipeline(folder))
    with FakeDevice():
        pipe = open_pipeline(folder, DEVICE)
        results = draw_everything(pipe)
        assert pipe.embed("bag").device == DEVICE
    for name, value in expected.items():
        atol = 1 if value.dtype == np.uint8 else 1e-4  # attention takes another kernel than on a CPU
        np.testing.assert_allclose(results[name].astype(float), value.astype(float), rtol=0, atol=atol, err_msg=name)


def test_fake_device_refuses_what_the_real_one_refuses():
    with FakeDevice():
        x = torch.arange(4.0, device=DEVICE)
        assert (x + 1).tolist() == [1, 2, 3, 4]
        for refused in (
            lambda: x.double(), lambda: torch.zeros(1, dtype=torch.float64, device=DEVICE), lambda: x.numpy(),
            lambda: torch.zeros(1, dtype=torch.float64).to(DEVICE), lambda: x + torch.ones(4),
            lambda: torch.special.ndtri(x),
        ):  # fmt: skip
            with pytest.raises((TypeError, RuntimeError)):
                refused()
