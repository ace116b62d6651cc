"""`--dtype bfloat16`: products of bfloat16 numbers, everything else float32, in run, plan, predict and Python."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import files
from helpers.command import assert_one_line, succeed
from helpers.command import lstmcli as command

import lstmcli
from lstmcli.model.chain import Chain
from lstmcli.model.layers import Pool

SAMPLE = Path(__file__).parents[2] / "sample_data"
WORDS = ("-i", SAMPLE / "vowels.h5", "-w", SAMPLE / "vowels_bilstm.safetensors", "--dtype", "bfloat16")


def arrays(path: Path) -> dict[str, bytes]:
    return {name: files.bits(value) for name, value in files.read_all(path).items() if name != "ids"}


def test_a_run_its_parts_and_python_give_the_same_bits(tmp_path: Path) -> None:
    facts = succeed("run", *WORDS, "--threads", 1, "-o", "one.h5", "--json", cwd=tmp_path).json
    assert {facts["outputs"]["dtype"], *(state["dtype"] for state in facts["state"])} == {"float32"}
    want = arrays(tmp_path / "one.h5")
    succeed("run", *WORDS, "--threads", 2, "--max-memory", "300KB", "-o", "two.h5", "-q", cwd=tmp_path)
    assert arrays(tmp_path / "two.h5") == want
    succeed("plan", *WORDS, "--shards", 2, "-o", "plan.json", "-q", cwd=tmp_path)
    for part in (1, 2):
        succeed("run", "--plan", "plan.json", "--shard", part, "-q", cwd=tmp_path)
    succeed("merge", "plan.json", "-o", "merged.h5", "-q", cwd=tmp_path)
    assert arrays(tmp_path / "merged.h5") == want
    with h5py.File(SAMPLE / "vowels.h5") as file:
        x, lengths = next(file[name][:] for name in file if file[name].ndim == 3), file["lengths"][:]
    outputs, _ = lstmcli.load_model(SAMPLE / "vowels_bilstm.safetensors")(x, lengths, dtype="bfloat16")
    assert files.bits(outputs) == want["outputs"]
    single, _ = lstmcli.load_model(SAMPLE / "vowels_bilstm.safetensors")(x, lengths)
    assert 1e-5 < np.abs(outputs - single).mean() < 1e-3


def test_another_dtype_is_another_run(tmp_path: Path) -> None:
    succeed("run", *WORDS, "-o", "first.h5", "-q", cwd=tmp_path)
    words = [word if word != "bfloat16" else "float32" for word in WORDS]
    ran = command("run", *words, "--resume", "-o", "first.h5", "-q", cwd=tmp_path)
    assert_one_line(ran, 73, "first.h5")


def test_a_run_that_was_stopped_goes_on(tmp_path: Path) -> None:
    words = ("run", *WORDS, "--max-memory", "300KB", "-o", "out.h5", "-q")
    assert command(*words, "--stop-after", "0.001", cwd=tmp_path).code == 75
    succeed(*words, "--resume", cwd=tmp_path)
    resumed = (tmp_path / "out.h5").read_bytes()
    succeed(*words, "--overwrite", cwd=tmp_path)
    assert (tmp_path / "out.h5").read_bytes() == resumed


@pytest.mark.parametrize("options", [(), ("--peepholes", "--projection", "6")])
def test_a_run_goes_on_from_the_states_of_another(options: tuple[str, ...], tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(5, 12, 9)).astype(np.float32)
    for name, part in {"whole": x, "first": x[:, :7], "second": x[:, 7:]}.items():
        np.save(tmp_path / f"{name}.npy", part)
    words = ("-u", "20,8", "--dtype", "bfloat16", "-q", *options)
    succeed("run", "-i", "whole.npy", *words, "-o", "whole.h5", cwd=tmp_path)
    succeed("run", "-i", "first.npy", *words, "-o", "first.h5", cwd=tmp_path)
    succeed("run", "-i", "second.npy", *words, "--initial-state", "first.h5", "-o", "second.h5", cwd=tmp_path)
    want, got = (files.read_all(tmp_path / name) for name in ("whole.h5", "second.h5"))
    assert files.bits(got["state/1/h"]) == files.bits(want["state/1/h"])
    assert files.bits(got["outputs"]) == files.bits(np.ascontiguousarray(want["outputs"][:, 7:]))


def test_a_weight_that_bfloat16_does_not_hold_is_refused() -> None:
    cell = lstmcli.Cell(np.full((1, 4), 3.4e38, np.float32), np.zeros((1, 4), np.float32))
    with pytest.raises(lstmcli.LstmcliError, match=r"3\.4e\+38, is too large for bfloat16; compute in float32"):
        cell(np.ones((1, 1, 1), np.float32), dtype="bfloat16")


def test_a_weight_that_float32_rounds_beyond_bfloat16_is_refused(tmp_path: Path) -> None:
    """In a call, a run and predict alike."""
    least = 2.0**128 * (1 - 2.0**-9)  # halfway from the largest bfloat16 to 2**128
    np.save(tmp_path / "x.npy", np.ones((1, 1, 1), np.float32))
    for weight, fits in [(np.nextafter(np.float32(least), np.float32(0)), True), (np.nextafter(least, 0), False)]:
        kernel = np.full((1, 4), weight, np.float64)
        model = lstmcli.Stack((lstmcli.Cell(kernel, np.zeros((1, 4))),))
        whole = Chain((model, Pool("final")), ("lstm", "final"))
        for verb, one in (("run", model), ("predict", whole)):
            one.save(tmp_path / "model.h5", overwrite=True)
            words = (verb, "-i", "x.npy", "-w", "model.h5", "--dtype", "bfloat16", "-o", f"{verb}.h5", "--overwrite", "-q")
            ran = command(*words, cwd=tmp_path)
            assert (ran.code == 0) is fits
            assert ("too large for bfloat16" in ran.err) is not fits


def test_python_knows_no_other_dtype() -> None:
    with pytest.raises(lstmcli.LstmcliError, match="dtype: expected 'bfloat16', got 'float16'"):
        lstmcli.init_model(2, [3])(np.ones((1, 1, 2), np.float32), dtype="float16")


def test_inputs_of_bfloat16_are_read_as_they_are(tmp_path: Path) -> None:
    """By every command, and in Python."""
    wide = np.random.default_rng(1).normal(size=(4, 9, 6)).astype(np.float32)
    stored = (wide.view(np.uint32) >> 16).astype("<u2").view("V2")
    wide = (wide.view(np.uint32) & 0xFFFF0000).view(np.float32)
    lengths = np.array([9, 0, 5, 2])
    np.save(tmp_path / "half.npy", stored)
    np.save(tmp_path / "wide.npy", wide)
    np.save(tmp_path / "lens.npy", lengths)
    for dtype in ("float32", "float64", "bfloat16"):
        words = ("-l", "lens.npy", "-u", "5", "--dtype", dtype, "--overwrite", "--json")
        facts = succeed("run", "-i", "half.npy", *words, "-o", "half.h5", cwd=tmp_path).json
        succeed("run", "-i", "wide.npy", *words, "-o", "wide.h5", cwd=tmp_path)
        assert facts["input"]["dtype"] == "bfloat16"
        got, want = (arrays(tmp_path / f"{name}.h5") for name in ("half", "wide"))
        assert got.pop("checksums/container") != want.pop("checksums/container")  # it says what the input was
        assert got == want
    about = succeed("inspect", "half.npy", "--lens", "lens.npy", "--json", cwd=tmp_path).json
    assert (about["sequences"]["dtype"], about["arrays"][0]["dtype"]) == ("bfloat16", "bfloat16")
    assert about["values"]["first"] == [float(str(one)) for one in wide[0, 0, :5]]
    succeed("compare", "half.npy", "wide.npy", cwd=tmp_path)
    succeed("convert", "half.npy", "flat.npy", "--lens", "lens.npy", "--layout", "flat", cwd=tmp_path)
    valid = np.concatenate([row[:n] for row, n in zip(wide, lengths, strict=True)])
    assert files.bits(np.load(tmp_path / "flat.npy")) == files.bits(valid)
    model = lstmcli.init_model(6, [5])
    whole = Chain((model, Pool("final")), ("lstm", "final"))
    for call in (model, whole.predict):
        for of in (lambda x: (x, lengths), lambda x: ([one[:n] for one, n in zip(x, lengths, strict=True)],)):
            got, want = (call(*of(x)) for x in (stored, wide))
            got, want = (np.concatenate(one[0] if call is model else one, axis=None) for one in (got, want))
            assert files.bits(got) == files.bits(want)


def test_arrays_of_ml_dtypes(tmp_path: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: pip install ml_dtypes")
    x = np.random.default_rng(1).normal(size=(4, 9, 6)).astype(ml_dtypes.bfloat16)
    model = lstmcli.init_model(6, [5])
    want = files.bits(model(x.astype(np.float32))[0])
    assert files.bits(model(x)[0]) == want
    np.save(tmp_path / "x.npy", x)
    succeed("run", "x.npy", "-u", "5", "-o", "out.npy", "-q", cwd=tmp_path)
    assert files.bits(np.load(tmp_path / "out.npy")) == want


def test_tensors_of_pytorch() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    x = torch.tensor(np.random.default_rng(1).normal(size=(4, 9, 6)), dtype=torch.bfloat16)
    start = torch.tensor(np.random.default_rng(2).normal(size=(2, 4, 5)), dtype=torch.bfloat16)
    model = lstmcli.init_model(6, [5])
    whole = Chain((model, Pool("final")), ("lstm", "final"))
    wide = x.float().numpy()
    assert files.bits(model(x, initial_state=tuple(start))[0]) == files.bits(model(wide, initial_state=tuple(start.float()))[0])
    assert files.bits(np.stack(model(list(x))[0])) == files.bits(model(wide)[0])
    assert files.bits(whole.predict(x)) == files.bits(whole.predict(list(x))) == files.bits(whole.predict(wide))
    with pytest.raises(TypeError, match="Sparse"):  # what else NumPy makes no array of
        model(x.float().to_sparse())
