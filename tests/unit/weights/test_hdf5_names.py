"""HDF5 files whose datasets have the names of other formats: ELMo's, PyTorch's, TensorFlow's, and others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import naive
from helpers import weight_files as wf
from helpers.command import assert_one_line
from helpers.command import lstmcli as command
from helpers.weight_imports import assert_same, load, refusal, tree

import lstmcli


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> Path:
    with h5py.File(path, "w") as file:
        for name, value in arrays.items():
            file.create_dataset(name, data=value)
    return path


def elmo_cells(seed: int, layers: int = 2) -> list[naive.Cell]:
    options = {"forget_bias": 1.0, "cell_clip": 3.0, "projection_clip": 3.0}
    return [replace(wf.random_cell(4, 6, seed + k, projection=4), **options) for k in range(layers)]


def elmo_arrays(directions: list[list[naive.Cell]]) -> wf.Arrays:
    arrays: wf.Arrays = {}
    for d, cells in enumerate(directions):
        for k, cell in enumerate(cells):
            scope = f"RNN_{d}/RNN/MultiRNNCell/Cell{k}/LSTMCell"
            of_cell = wf.tensorflow_variables(cell, scope, "W_0", "B")
            arrays |= {name.replace("projection/kernel", "W_P_0"): value for name, value in of_cell.items()}
    return arrays


def stack(cells: list[naive.Cell]) -> naive.Stack:
    return naive.Stack((cells[0], *(naive.Residual(cell) for cell in cells[1:])))


def test_elmo(tmp_path: Path) -> None:
    """Gates i, j, f, o; upper layers add their input; what options.json holds is assumed, and said."""
    ahead, back = elmo_cells(0, 3), elmo_cells(9, 3)
    others = {"char_embed": np.ones((5, 2), "f4"), "CNN_proj/W_proj": np.ones((2, 4), "f4")}
    path = write(tmp_path / "elmo.hdf5", elmo_arrays([ahead, back]) | others)
    assert_same(tree(path), naive.Bidirectional(stack(ahead), stack(back)))
    found = load(path)
    for word in ("ELMo", "forget_bias 1.0", "cell_clip 3.0", "projection_clip 3.0", "residual", "options.json"):
        assert word in found.assumed[0]
    assert "char_embed" in found.before[0]
    x = np.random.default_rng(0).normal(size=(3, 5, 4))
    want, _ = naive.run(naive.Bidirectional(stack(ahead), stack(back)), x, [5, 2, 4])
    with pytest.warns(UserWarning, match="elmo.hdf5"):
        model = lstmcli.load_model(str(path))
    np.testing.assert_allclose(model(x, [5, 2, 4])[0], want, rtol=0, atol=1e-12)


def test_elmo_with_options_of_its_own(tmp_path: Path) -> None:
    ahead, back = elmo_cells(0), elmo_cells(9)
    path = write(tmp_path / "elmo.hdf5", elmo_arrays([ahead, back]))
    said = [replace(cell, cell_clip=0.9, projection_clip=None) for cell in ahead]
    got = load(path, select="RNN_0", cell_clip=0.9, projection_clip=(None,))
    assert_same(tree(path, select="RNN_0", cell_clip=0.9, projection_clip=(None,)), stack(said))
    assert "cell_clip" not in got.assumed[0]
    one = write(tmp_path / "one", elmo_arrays([ahead[:1], back[:1]]))
    assert_same(tree(one), naive.Bidirectional(ahead[0], back[0]))
    assert_same(tree(write(tmp_path / "forward", elmo_arrays([ahead]))), stack(ahead))


@pytest.mark.parametrize("nested", [False, True])
def test_pytorch_s_names(nested: bool, tmp_path: Path) -> None:
    model = naive.Stack((naive.Bidirectional(wf.random_cell(3, 4, 0), wf.random_cell(3, 4, 1)), wf.random_cell(8, 4, 2)))
    arrays = wf.torch_state_dict(naive.Stack(model.layers[:1]), "encoder.lstm.") | {"fc.weight": np.ones((2, 8), "f4")}
    named = {name.replace(".", "/") if nested else name: value for name, value in arrays.items()}
    found = load(path := write(tmp_path / "a", named))
    assert_same(tree(path), naive.Stack(model.layers[:1]))
    assert [tensor.name for tensor in found.left_out] == ["fc.weight"]
    two = write(tmp_path / "b", named | wf.torch_state_dict(naive.Stack(model.layers[1:]), "decoder."))
    assert "2 LSTMs" in refusal(two)
    assert_same(tree(two, select="decoder"), naive.Stack(model.layers[1:]))
    assert_same(tree(two, select=("encoder.lstm", "decoder")), model)


def test_tensorflow_s_names(tmp_path: Path) -> None:
    cell = replace(wf.random_cell(3, 4, 0), forget_bias=1.0)
    found = load(path := write(tmp_path / "a", wf.tensorflow_variables(cell, "rnn/lstm_cell")))
    assert_same(tree(path), naive.Stack((cell,)))
    assert "forget_bias" in found.assumed[0]


def test_other_files_say_what_they_hold(tmp_path: Path) -> None:
    arrays = {"gru/weight": np.ones((3, 2)), "x": np.ones((2, 5, 3), "f4")}
    text = refusal(write(tmp_path / "a.h5", arrays))
    for word in ("/gru/weight (3, 2) float64", "/x (2, 5, 3) float32", "weight_ih_l0"):
        assert word in text
    assert "no dataset" in refusal(write(tmp_path / "b.h5", {}))
    assert_one_line(command("model", "show", "a.h5", cwd=tmp_path), 65, "a.h5", "/gru/weight")


def test_links_out_of_the_file_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a", wf.torch_state_dict(naive.Stack((wf.random_cell(3, 4, 0),))))
    with h5py.File(path, "a") as file:
        del file["bias_hh_l0"]
        file["bias_hh_l0"] = h5py.ExternalLink("b", "/bias")
    assert "link" in refusal(path)
