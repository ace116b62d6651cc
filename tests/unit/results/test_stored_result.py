"""lstmcli.open_result: a result by sequence, in every layout, against what plain h5py reads."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import files
from helpers.case import Case
from helpers.command import succeed

import lstmcli
from lstmcli.errors import DataError, MissingInputError

SAVE = "outputs,states,cells,layers"
SEQUENCES = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A padded result, one with padding in front, and the same in the other layouts, made here from the description alone."""
    folder = tmp_path_factory.mktemp("stored")
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 9, SEQUENCES)
    files.write_h5(folder / "x.h5", x=rng.normal(size=(SEQUENCES, 8, 3)).astype(np.float32), lengths=lengths)
    args = ["run", "-i", "x.h5", "-u", "5,4", "--bidirectional", "--save", SAVE]
    succeed(*args, "-o", "padded.h5", cwd=folder)
    succeed(*args, "--padding", "pre", "-o", "front.h5", cwd=folder)
    write_flat(folder / "padded.h5", folder / "flat.h5")
    write_per_sequence(folder / "padded.h5", folder / "each.h5")
    return folder


def steps_of(file: h5py.File) -> dict[str, np.ndarray]:
    return {name: file[name][:] for name in ("outputs", "cells", "layers/0", "layers/1")}


def copy_rest(old: h5py.File, new: h5py.File) -> None:
    for name in ("lengths", "state", "model"):
        old.copy(name, new)
    for name, value in old.attrs.items():
        new.attrs[name] = value
    new["ids"] = [f"id {k}" for k in range(len(old["lengths"]))]


def write_flat(padded: Path, flat: Path) -> None:
    with h5py.File(padded) as old, h5py.File(flat, "w") as new:
        copy_rest(old, new)
        valid = ~files.padding(old["outputs"].shape, old["lengths"][:])
        new["offsets"] = np.r_[0, np.cumsum(old["lengths"][:])]
        for name, values in steps_of(old).items():
            new[name] = values[valid]


def write_per_sequence(padded: Path, each: Path) -> None:
    with h5py.File(padded) as old, h5py.File(each, "w") as new:
        copy_rest(old, new)
        old.copy("checksums", new)
        del new["checksums/container"]  # that of the other file
        for name, values in steps_of(old).items():
            for k, length in enumerate(old["lengths"][:]):
                new[f"{name}/id {k}"] = values[k, :length]


@pytest.mark.parametrize("layout", ["padded", "flat", "each"])
def test_every_layout_gives_the_same(layout: str, folder: Path) -> None:
    with h5py.File(folder / "padded.h5") as file, lstmcli.open_result(folder / f"{layout}.h5") as result:
        assert result.layout == {"each": "per-sequence"}.get(layout, layout)
        assert result.lengths.tolist() == file["lengths"][:].tolist()
        for name, values in steps_of(file).items():
            array, longest = result.arrays[name], int(result.lengths.max())
            for k, length in enumerate(result.lengths):
                assert files.bits(array[k]) == files.bits(values[k, :length]), (name, k)
            assert files.bits(array.padded()[:, :longest]) == files.bits(values[:, :longest])
            assert files.bits(np.asarray(array)) == files.bits(array.padded())
            assert files.bits(array.padded(7, 5)[:, :longest]) == files.bits(values[7:12, :longest])
            assert [len(one) for one in array[3:9:2]] == result.lengths[3:9:2].tolist()
        for name in ("0/forward/h", "1/backward/c"):
            assert files.bits(np.asarray(result.state[name])) == files.bits(file[f"state/{name}"][:])
            assert files.bits(result.state[name][-1]) == files.bits(file[f"state/{name}"][-1])
            assert files.bits(result.state[name][2:9:3]) == files.bits(file[f"state/{name}"][2:9:3])
        assert result.arrays["layers/1"] is result.layers["1"]
        assert result.attributes["options"]["save"] == sorted(SAVE.split(","))
        assert result.model.input_size == 3
        assert "40 sequences" in repr(result)


def test_sequences_by_id(folder: Path) -> None:
    with lstmcli.open_result(folder / "flat.h5") as result:
        assert result.ids[3] == "id 3"
        assert files.bits(result.outputs["id 3"]) == files.bits(result.outputs[3])
        assert files.bits(result.state["0/forward/h"]["id 3"]) == files.bits(result.state["0/forward/h"][3])
        with pytest.raises(DataError, match=r"::/ids: has no id 99$"):
            result.outputs["id 99"]
        with pytest.raises(IndexError, match=r"^outputs: expected a sequence of 0 \.\. 39, got 40$"):
            result.outputs[40]
    with (
        lstmcli.open_result(folder / "padded.h5") as result,
        pytest.raises(DataError, match="has no ids; name a sequence by its"),
    ):
        result.outputs["id 3"]


def test_padding_in_front(folder: Path) -> None:
    with h5py.File(folder / "front.h5") as file, lstmcli.open_result(folder / "front.h5") as result:
        assert files.bits(result.outputs.padded()) == files.bits(file["outputs"][:])
        for k, length in enumerate(result.lengths):
            assert files.bits(result.outputs[k]) == files.bits(file["outputs"][k, 8 - length :])


def test_other_files_are_refused(case: Case, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingInputError):
        lstmcli.open_result(tmp_path / "nothing.h5")
    with pytest.raises(DataError, match="expected a result of lstmcli run or predict, got another file"):
        lstmcli.open_result(case.weights)
    damaged = tmp_path / "damaged.h5"
    damaged.write_bytes((folder / "flat.h5").read_bytes())
    with h5py.File(damaged, "r+") as file:
        file["offsets"][3] += 1
    with pytest.raises(DataError, match=r"::/offsets: damaged: they do not fit the lengths"):
        lstmcli.open_result(damaged)


def test_pandas(folder: Path) -> None:
    pytest.importorskip("pandas", reason="pandas is not installed: pip install pandas")
    with lstmcli.open_result(folder / "front.h5") as result:
        steps = result.to_pandas("outputs")
        assert list(steps.index.names) == ["id", "step"]
        sequence = int(result.lengths.argmax())
        np.testing.assert_array_equal(steps.loc[sequence].to_numpy(), result.outputs[sequence])
        short = int(np.flatnonzero(result.lengths == 2)[0])
        assert steps.loc[short].index.tolist() == [6, 7]
        np.testing.assert_array_equal(result.to_pandas("state/0/forward/h").to_numpy(), np.asarray(result.state["0/forward/h"]))
        assert result.to_pandas()["state/1/backward/c"].shape == (SEQUENCES, 4)
        with pytest.raises(DataError, match=r"has no array output; there is outputs, cells, layers/0"):
            result.to_pandas("output")


def test_xarray(folder: Path) -> None:
    pytest.importorskip("xarray", reason="xarray is not installed: pip install xarray")
    with lstmcli.open_result(folder / "flat.h5") as result:
        found = result.to_xarray()
        sequence = int(np.flatnonzero(result.lengths == 2)[0])
        values = found["outputs"].sel(sequence=f"id {sequence}").to_numpy()
        np.testing.assert_array_equal(values[:2], result.outputs[sequence])
        assert np.isnan(values[2:]).all()
