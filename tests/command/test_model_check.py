"""`model import --check`: what the framework gave is compared before a model file is written, kept in it, and repeated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import naive
from helpers import weight_files as wf
from helpers.command import assert_one_line, lstmcli, succeed
from helpers.weight_imports import load

from lstmcli.engine.model_check import confirm
from lstmcli.errors import LstmcliError
from lstmcli.model.model_check import read_check_files

LENGTHS = np.array([5, 2, 0])
MODEL = naive.Stack((naive.Bidirectional(wf.random_cell(3, 4, 0), wf.random_cell(3, 4, 1)),))


def files(folder: Path, dtype: str = "f4", off: float = 0.0) -> None:
    """w.safetensors, x.npy, lens.npy, and y.npy with one number off, and garbage in the padding."""
    wf.write_safetensors(folder / "w.safetensors", wf.torch_state_dict(MODEL))
    x = np.random.default_rng(0).normal(size=(3, 5, 3)).astype(dtype)
    y, _ = naive.run(MODEL, x, LENGTHS)
    y[1, 1, 6] += off
    y[1, 2:] = np.nan
    for name, array in {"x": x, "y": y.astype(dtype), "lens": LENGTHS}.items():
        np.save(folder / f"{name}.npy", array)


@pytest.mark.parametrize("dtype", ["f4", "f8", ">f4", "f2"])
def test_a_check_is_kept_and_repeated(dtype: str, tmp_path: Path) -> None:
    files(tmp_path, dtype)
    if dtype == "f2":  # the outputs of float16 are too far off
        np.save(tmp_path / "y.npy", naive.run(MODEL, np.load(tmp_path / "x.npy"), LENGTHS)[0])
    done = succeed("model", "import", "w.safetensors", "--check", "x.npy,y.npy,lens.npy", "-o", "m.h5", cwd=tmp_path)
    assert "off by" in done.text
    assert "off by" in succeed("verify", "m.h5", cwd=tmp_path).text
    with h5py.File(tmp_path / "m.h5") as file:
        assert {name: item.dtype.str for name, item in file["check"].items()} | {"y": ""} == {
            "x": "<f8" if dtype == "f8" else "<f4", "y": "", "lengths": "<i8"
        }  # fmt: skip
    succeed("model", "show", "m.h5", cwd=tmp_path)
    with h5py.File(tmp_path / "m.h5", "a") as file:
        file["model/0/forward/bias"][0] += np.float32(0.5)
    assert_one_line(lstmcli("verify", "m.h5", cwd=tmp_path), 65, "m.h5::/check", "something else")


def test_without_a_check_the_file_is_what_it_was(tmp_path: Path) -> None:
    files(tmp_path)
    succeed("model", "import", "w.safetensors", "-o", "a.h5", cwd=tmp_path)
    succeed("model", "import", "w.safetensors", "--check", "x.npy,y.npy,lens.npy", "-o", "b.h5", cwd=tmp_path)
    with h5py.File(tmp_path / "a.h5") as one, h5py.File(tmp_path / "b.h5", "a") as other:
        assert set(one) == {"model"}
        assert set(other) == {"model", "check"}
    assert "check" not in succeed("verify", "a.h5", cwd=tmp_path).text.replace("checksums", "")


@pytest.mark.parametrize("off", [2e-3, -2e-3, np.nan, np.inf])
def test_other_outputs_leave_no_file(off: float, tmp_path: Path) -> None:
    files(tmp_path, off=off)
    ran = lstmcli("model", "import", "w.safetensors", "--check", "x.npy,y.npy,lens.npy", "-o", "m.h5", cwd=tmp_path)
    assert_one_line(ran, 65, "sequence 1, step 1, feature 6")
    assert not (tmp_path / "m.h5").exists()


def test_what_was_assumed_stands_beside_a_difference(tmp_path: Path) -> None:
    cell = replace(wf.random_cell(3, 4, 0), forget_bias=0.0)
    wf.write_checkpoint(tmp_path / "m", wf.tensorflow_variables(cell, "rnn/lstm_cell"))
    x = np.random.default_rng(0).normal(size=(3, 5, 3)).astype("f4")
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", naive.run(cell, x)[0].astype("f4"))
    command = ["model", "import", "m.index", "--check", "x.npy,y.npy", "-o", "m.h5"]
    assert_one_line(lstmcli(*command, cwd=tmp_path), 65, "forget_bias 1.0 is assumed", "off by")
    succeed(*command, "--forget-bias", 0, cwd=tmp_path)


@pytest.mark.parametrize(
    ("spec", "code", "words"),
    [
        ("x.npy", 2, ["--check x.npy", "X.npy,Y.npy"]),
        ("x.npy,,lens.npy", 2, ["--check"]),
        ("x.npy,none.npy", 66, ["none.npy"]),
        ("x.npy,w.safetensors", 65, ["w.safetensors", "NPY"]),
        ("y.npy,y.npy", 65, ["3 and y of 8"]),
        ("x.npy,lens.npy", 65, ["lens.npy", "(N, T, features)"]),
        ("x.npy,y.npy,x.npy", 65, ["3 integers"]),
        ("x.npy,short.npy", 65, ["5 steps"]),
        ("x.npy,y.npy,long.npy", 65, ["0 to 5"]),
        ("x.npy,y.npy,zeros.npy", 65, ["at least one step"]),
        ("x.npy,fortran.npy", 65, ["Fortran"]),
        ("x.npy,cut.npy", 65, ["cut.npy"]),
        ("x.npy,huge.npy", 65, ["huge.npy"]),
    ],
)
def test_files_that_are_no_check(
    spec: str, code: int, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files(tmp_path)
    y = np.load(tmp_path / "y.npy")
    others = {"short": y[:, :4].copy(), "long": LENGTHS + 4, "zeros": LENGTHS * 0, "fortran": np.asfortranarray(y)}
    for name, array in others.items():
        np.save(tmp_path / f"{name}.npy", array)
    whole = (tmp_path / "y.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:-1])
    (tmp_path / "huge.npy").write_bytes(whole.replace(b"(3, 5, 8)", b"(3,9**9)", 1).replace(b"9**9", b"9999"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LstmcliError) as caught:
        confirm(load(tmp_path / "w.safetensors").model, read_check_files(spec), spec)
    assert caught.value.exit_code == code
    for word in words:
        assert word in str(caught.value)


def test_a_damaged_check_is_refused(tmp_path: Path) -> None:
    files(tmp_path)
    succeed("model", "import", "w.safetensors", "--check", "x.npy,y.npy,lens.npy", "-o", "m.h5", cwd=tmp_path)
    whole = (tmp_path / "m.h5").read_bytes()
    for change in ("x", "y", "lengths", "shape"):
        (tmp_path / "m.h5").write_bytes(whole)
        with h5py.File(tmp_path / "m.h5", "a") as file:
            if change == "shape":
                del file["check/y"]
                file["check/y"] = np.ones((3, 4, 8), "f4")
            elif change == "lengths":
                file["check/lengths"][:] = 9
            else:
                del file[f"check/{change}"]
        assert_one_line(lstmcli("verify", "m.h5", cwd=tmp_path), 65, "m.h5")
        succeed("model", "show", "m.h5", cwd=tmp_path)
