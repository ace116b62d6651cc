"""compare: against a reference of plain NumPy, in every layout, and down to a single bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers import files
from helpers.case import Case
from helpers.command import assert_one_line, lstmcli, succeed
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lstmcli.model.model_file import save_model
from lstmcli.model.new_weights import init_model
from lstmcli.tools.compare import compare as compare_module
from lstmcli.tools.compare import differences
from lstmcli.tools.compare.compare import compare


def ulps(a: np.floating, b: np.floating) -> int:
    """How many floats of the dtype one has to step over, one at a time; 0 for both zeros."""
    count = 0
    low, high = min(a, b), max(a, b)
    while low < high:
        low = np.nextafter(low, high)
        count += 1
    return count


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("steps", [0, 1, 7])
@pytest.mark.parametrize("near", [0.0, 1.0, -1.0, 1e-7, -65000.0, "below zero"])
def test_ulps(dtype: Any, steps: int, near: Any) -> None:
    a = b = dtype(near) if near != "below zero" else -3 * np.finfo(dtype).smallest_subnormal
    for _ in range(steps):
        b = np.nextafter(b, dtype(np.inf))
    found = differences.ordered(np.array([a, b]))
    assert abs(int(found[1]) - int(found[0])) == ulps(a, b) == steps


FLOATS = hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 4)), elements=st.floats(width=32))


@given(a=FLOATS, data=st.data())
def test_measures_of_arrays(a: np.ndarray, data: st.DataObject) -> None:
    b = data.draw(hnp.arrays(np.float32, a.shape, elements=st.one_of(st.floats(width=32), st.sampled_from(a.ravel().tolist()))))
    found = differences.Difference(tolerance=0.5)
    found.add(a, b, differences.Piece(3, len(a), 0, None))
    facts = found.facts()
    changed = [k for k in range(a.size) if a.ravel()[k].tobytes() != b.ravel()[k].tobytes()]
    assert facts["differing"] == len(changed)
    if not changed:
        assert facts["first"] is None
        return
    place = facts["first"]
    assert (place["row"], place["step"], place["unit"]) == (3 + changed[0] // a.shape[1], None, changed[0] % a.shape[1])
    absolute, relative, odd, beyond = 0.0, 0.0, 0, 0
    for k in changed:
        x, y = float(a.ravel()[k]), float(b.ravel()[k])
        if x == y or (np.isnan(x) and np.isnan(y)):
            continue
        if not (np.isfinite(x) and np.isfinite(y)):
            odd += 1
            beyond += 1
            continue
        absolute, apart = max(absolute, abs(x - y)), abs(x - y) / max(abs(x), abs(y))
        relative = max(relative, apart)
        beyond += abs(x - y) > 0.5 and apart > 0.5
    assert (facts["max_absolute"], facts["max_relative"]) == (absolute, relative)
    assert (facts["nonfinite"], facts["beyond_tolerance"]) == (odd, beyond)


@pytest.fixture(scope="module")
def folder(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    args = ["run", *case.inputs, "--save", "outputs,states,cells,layers"]
    succeed(*args, "-o", "padded.h5", cwd=folder)
    succeed(*args, "--layout", "flat", "-o", "flat.h5", cwd=folder)
    succeed("run", *case.inputs, "-o", "out.npy", cwd=folder)
    succeed("run", *case.inputs, "--layout", "flat", "-o", "rows.npy", cwd=folder)
    return folder


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("padded.h5", "padded.h5"), ("padded.h5", "flat.h5"), ("flat.h5", "padded.h5"), ("out.npy", "flat.h5"),
        ("rows.npy", "padded.h5"), ("flat.h5", "rows.npy"),
        ("padded.h5", "out.npy"), ("out.states.npz", "flat.h5"), ("padded.h5::/state", "out.states.npz"),
        ("out.model.h5", "padded.h5"), ("padded.h5::/cells", "flat.h5::/cells"), ("out.npy", "out.npy"),
    ],
)  # fmt: skip
def test_the_same_in_another_form(a: str, b: str, folder: Path) -> None:
    facts = compare(str(folder / a), str(folder / b))
    assert facts["equal"]
    assert facts["same"]
    assert all(found["compared"] for found in facts["arrays"])
    assert not facts["other_weights"]


def test_a_flat_array_that_differs(folder: Path, case: Case, tmp_path: Path) -> None:
    """The place is told by the sequences of the result."""
    rows = np.load(folder / "rows.npy")
    row = int(np.flatnonzero(case.lengths > 2)[-1])
    rows[case.lengths[:row].sum() + 2, 3] += 1
    facts = compare(str(folder / "padded.h5"), str(files.write_npy(tmp_path / "rows.npy", rows)))
    (found,) = facts["arrays"]
    assert (facts["equal"], found["differing"]) == (False, 1)
    assert [found["first"][name] for name in ("row", "step")] == [row, 2]


@pytest.mark.parametrize("piece", [64, 500, 1 << 20])
@pytest.mark.parametrize("sides", [("padded.h5", "flat.h5"), ("flat.h5", "padded.h5"), ("padded.h5", "padded.h5")])
def test_a_flipped_bit_is_found(piece: int, sides: tuple[str, str], case: Case, folder: Path, tmp_path: Path) -> None:
    """Wherever it is, and however the arrays are cut into pieces: sequences longer than a piece are cut in time."""
    changed = tmp_path / "changed.h5"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(differences, "PIECE", piece)
        for row, step, unit in [(0, 0, 0), (7, int(case.lengths[7]) - 1, 4), (3, int(case.lengths[3]) // 2, 2)]:
            changed.write_bytes((folder / sides[1]).read_bytes())
            with h5py.File(changed, "r+") as file:
                at = (file["offsets"][row] + step, unit) if "offsets" in file else (row, step, unit)
                bits = np.array([file["outputs"][at]]).view(np.uint32)
                file["outputs"][at] = (bits ^ 1).view(np.float32)[0]
            facts = compare(str(folder / sides[0]), str(changed), tolerance=1e-6)
            assert not facts["equal"]
            assert facts["same"]  # within the tolerance
            bad = [found for found in facts["arrays"] if not found["equal"]]
            assert [found["name"] for found in bad] == ["outputs"]
            assert (bad[0]["differing"], bad[0]["max_ulp"]) == (1, 1)
            assert {key: bad[0]["first"][key] for key in ("row", "step", "unit", "id")} == {
                "row": row, "step": step, "unit": unit, "id": None,
            }  # fmt: skip
            assert bad[0]["compared"] == case.lengths.sum() * 5


def test_padding_is_not_compared(folder: Path, case: Case, tmp_path: Path) -> None:
    changed = tmp_path / "changed.h5"
    changed.write_bytes((folder / "padded.h5").read_bytes())
    with h5py.File(changed, "r+") as file:
        file["outputs"][3, case.lengths[3] :] = np.nan
    assert compare(str(folder / "flat.h5"), str(changed))["equal"]


def test_what_results_are_made_of_is_said_first(case: Case, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.h5"
    succeed("run", "-i", case.x_npy, "-l", case.lens_npy, "-u", "21,5", "--seed", 3, "-o", other, cwd=tmp_path)
    facts = compare(str(folder / "padded.h5"), str(other))
    assert not facts["same"]
    assert "options save: ['cells', 'layers', 'outputs', 'states'] in A, ['outputs', 'states'] in B" in facts["made_of"]
    assert "0/input_kernel" in facts["other_weights"]
    assert facts["only_in_a"] == ["cells", "layers/0", "layers/1"]
    text = succeed_with(1, "compare", folder / "padded.h5", other, cwd=tmp_path)
    assert text.index("weights   other ones") < text.index("differ    outputs")
    assert text.endswith("result    not equal\n")
    assert max(map(len, text.splitlines()[2:])) <= 100


def test_other_lengths_and_ids(folder: Path, tmp_path: Path, case: Case) -> None:
    rows = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    a = files.write_h5(tmp_path / "a.h5", x=rows, lengths=np.array([4, 2, 3]))
    b = files.write_h5(tmp_path / "b.h5", x=rows, lengths=np.array([4, 3, 2]))
    facts = compare(str(a), str(b))
    assert not facts["same"]
    assert "2 of 3 lengths differ, first that of sequence 1: 2 and 3" in facts["sequences"][0]
    assert facts["arrays"][0]["compared"] == (4 + 2 + 2) * 3
    names = [np.array([f"{side}{k}" for k in range(3)], object) for side in "pq"]
    for path, ids in zip((a, b), names, strict=True):
        with h5py.File(path, "r+") as file:
            file["lengths"][:] = [4, 2, 3]
            file.create_dataset("ids", data=ids, dtype=h5py.string_dtype())
    facts = compare(str(a), str(b))
    assert facts["sequences"] == ["3 ids differ, first that of sequence 0: p0 and q0"]
    assert all(found["equal"] for found in facts["arrays"])
    assert not facts["same"]


def test_models_of_other_options_differ(tmp_path: Path) -> None:
    for name, activation in (("a", "tanh"), ("b", "relu")):
        args = ["--input-size", 3, "-u", 4, "--activation", activation, "-o", f"{name}.h5"]
        succeed("model", "init", *args, cwd=tmp_path)
    facts = compare(str(tmp_path / "a.h5"), str(tmp_path / "b.h5"), tolerance=1.0)
    assert facts["made_of"] == ["model_config 0 activation: tanh in A, relu in B"]
    assert all(found["equal"] for found in facts["arrays"])
    assert not facts["same"]


def test_layers_of_other_kinds_are_told_in_one_line(tmp_path: Path) -> None:
    save_model(init_model(3, [3, 3]), tmp_path / "a.h5")
    save_model(init_model(3, [3, 3], residual=True), tmp_path / "b.h5")
    found = compare(str(tmp_path / "a.h5"), str(tmp_path / "b.h5"))
    assert found["made_of"] == ["model_config 1 kind: cell in A, residual in B"]
    assert not found["same"]


def test_arrays_of_other_dtypes(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float16)
    a, b = files.write_npy(tmp_path / "a.npy", values), files.write_npy(tmp_path / "b.npy", values.astype(np.float64))
    facts = compare(str(a), str(b), tolerance=0)
    assert (facts["equal"], facts["same"], facts["arrays"][0]["differing"]) == (False, True, 0)
    values[3, 2] = 9
    facts = compare(str(files.write_npy(tmp_path / "a.npy", values)), str(b))
    assert (facts["arrays"][0]["max_ulp"], facts["arrays"][0]["first"]["row"], facts["same"]) == (None, 3, False)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(6,), (5, 4)])
def test_arrays_of_bfloat16_are_compared_as_numbers(shape: tuple[int, ...], order: Any, tmp_path: Path) -> None:
    """NumPy calls them V2: the upper halves of float32."""
    wide = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    halves = (wide.view(np.uint32) >> 16).astype("<u2")
    wide = (wide.view(np.uint32) & 0xFFFF0000).view(np.float32)
    halves = np.asarray(halves, order=order)
    np.save(tmp_path / "half.npy", halves.view("V2") if order == "C" else halves.T.view("V2").T)
    np.savez(tmp_path / "half.npz", halves.view("V2") if order == "C" else halves.T.view("V2").T)
    np.save(tmp_path / "wide.npy", wide)
    for half in ("half.npy", "half.npz"):
        facts = compare(str(tmp_path / half), str(tmp_path / "wide.npy"))
        assert (facts["equal"], facts["arrays"][0]["compared"]) == (True, wide.size)
    wide.flat[3] += 1
    np.save(tmp_path / "other.npy", wide)
    facts = compare(str(tmp_path / "half.npy"), str(tmp_path / "other.npy"))
    assert (facts["equal"], facts["arrays"][0]["differing"], facts["arrays"][0]["max_absolute"]) == (False, 1, 1.0)


def succeed_with(code: int, *args: object, cwd: Path) -> str:
    ran = lstmcli(*args, cwd=cwd)
    assert (ran.code, ran.err) == (code, "")
    return ran.text


def test_command(folder: Path, case: Case, tmp_path: Path) -> None:
    text = succeed_with(0, "compare", "padded.h5", "flat.h5", cwd=folder)
    assert "result    equal to the bit; padding is not compared" in text
    assert succeed_with(0, "compare", "-q", "padded.h5", "flat.h5", cwd=folder) == ""
    assert succeed("compare", "--json", "padded.h5", "flat.h5", cwd=folder).json["equal"] is True
    assert_one_line(lstmcli("compare", "padded.h5", "nothing.h5", cwd=folder), 66, "nothing.h5", "No such file")
    assert_one_line(lstmcli("compare", "-", "padded.h5", cwd=folder), 2, "neither can be a pipe")
    numbers = files.write_npy(tmp_path / "numbers.npy", np.arange(13))
    assert_one_line(lstmcli("compare", "padded.h5", numbers, cwd=folder), 65, "have no array in common")
    assert compare_module.compare(str(case.lens_npy), str(case.lens_npy))["equal"]
