"""The command against what TensorFlow's dynamic_rnn computed, from HDF5 and from NPY."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import files, golden
from helpers.arm64 import run_on_arm64
from helpers.command import succeed

PROGRAM = f"""
import hashlib, sys
from pathlib import Path
sys.path.insert(0, {str(Path(golden.__file__).parents[1])!r})
from helpers import files, golden
import lstmcli
for name in golden.NAMES:
    case = golden.load(name)
    model = lstmcli.load_model(files.write_model(Path("model.h5"), case.model, case.dtype))
    outputs, state = model(case.x, case.lens, initial_state=case.initial or None)
    assert golden.relative_error(outputs, case.outputs) <= case.tolerance, name
    arrays = [outputs, *(state[path] for path in sorted(state))]
    print(name, hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest(), flush=True)
"""


def write_input(folder: Path, case: golden.Golden, kind: str) -> list[object]:
    """The case's batch in one HDF5 file or in NPY files; the options that name them."""
    if kind == "h5":
        lens = {} if case.lens is None else {"lens": case.lens}
        files.write_h5(folder / "in.h5", x=case.x, **lens)
        options: list[object] = ["--input", "in.h5::/x"]
        return options if case.lens is None else [*options, "--lens", "in.h5::/lens"]
    files.write_npy(folder / "x.npy", case.x)
    if case.lens is None:
        return ["--input", "x.npy"]
    files.write_npy(folder / "lens.npy", case.lens)
    return ["--input", "x.npy", "--lens", "lens.npy"]


@pytest.mark.parametrize("kind", ["h5", "npy"])
@pytest.mark.parametrize("name", golden.NAMES)
def test_golden(name: str, kind: str, tmp_path: Path) -> None:
    case = golden.load(name)
    files.write_model(tmp_path / "model.h5", case.model, case.dtype)
    options = [*write_input(tmp_path, case, kind), "--weights", "model.h5", "--dtype", case.dtype]
    if case.initial:
        np.savez(tmp_path / "initial.npz", **case.initial)  # type: ignore[arg-type]
        options += ["--initial-state", "initial.npz"]
    succeed("run", *options, "--output", f"out.{kind}", cwd=tmp_path)
    if kind == "h5":
        outputs, state = files.read_result(tmp_path / "out.h5")
    else:
        outputs, state = np.load(tmp_path / "out.npy"), files.read_npz(tmp_path / "out.states.npz")

    assert outputs is not None
    assert outputs.dtype == case.dtype
    assert golden.relative_error(outputs, case.outputs) <= case.tolerance
    assert state.keys() == case.state.keys()
    for path, value in case.state.items():
        assert state[path].dtype == case.dtype
        assert golden.relative_error(state[path], value) <= case.tolerance, path
    if case.lens is not None:
        padded = outputs[files.padding(outputs.shape, case.lens)]
        assert padded.tobytes() == bytes(padded.nbytes)  # +0.0 exactly, which -0.0 is not


@pytest.mark.slow
def test_arm64_gives_the_same_bits(tmp_path: Path) -> None:
    here = subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert len(here.stdout.splitlines()) == len(golden.NAMES)
    assert run_on_arm64("-c", PROGRAM, cwd=tmp_path) == here.stdout
