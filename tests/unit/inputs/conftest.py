"""Fixtures of the tests of inputs."""

from contextlib import closing

import numpy as np
import pytest
from helpers.sources import AXES, LAYOUTS, open_layout, save_npy

from lstmcli.inputs.open_input import open_source


@pytest.fixture(params=[(layout, axes) for axes in AXES for layout in LAYOUTS])
def opened(request, tmp_path):
    """Opens (N, T, E) in every layout, stored with its axes in every order."""
    layout, axes = request.param
    return lambda x: open_layout(layout, tmp_path / "x.bin.npy", x, axes)


@pytest.fixture
def source(tmp_path):
    with closing(open_source(save_npy(tmp_path / "x.npy", np.ones((4, 200, 3), np.float32)))) as opened:
        yield opened
