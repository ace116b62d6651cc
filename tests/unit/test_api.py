"""The Python API against the naive reference, and against the command."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from helpers import files, golden, naive
from helpers.case import Case
from hypothesis import given
from hypothesis import strategies as st

import lstmcli
from lstmcli.errors import DataError, UsageError


@st.composite
def batches(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[int], int]:
    """x (N, T, E) float64 with NaN in the padding, lengths, units of each layer, and the seed they come from."""
    n, steps, features = draw(st.integers(1, 20)), draw(st.integers(1, 8)), draw(st.integers(1, 20))
    lengths = np.array(draw(st.lists(st.integers(0, steps), min_size=n, max_size=n)))
    units = draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    seed = draw(st.integers(0, 2**32 - 1))
    x = np.random.default_rng(seed).normal(size=(n, steps, features))
    x[files.padding(x.shape, lengths)] = np.nan
    return x, lengths, units, seed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-12)])
@given(batch=batches())
def test_agrees_with_the_naive_reference(
    dtype: str, tolerance: float, folder: Path, batch: tuple[np.ndarray, np.ndarray, list[int], int]
) -> None:
    x, lengths, units, seed = batch
    x = x.astype(dtype)
    reference = files.random_model(x.shape[2], units, seed)
    model = lstmcli.load_model(files.write_model(folder / "model.h5", reference, dtype))
    outputs, state = model(x, lengths=lengths)
    want, want_state = naive.run(reference, x, lengths)
    assert outputs.dtype == dtype
    assert golden.relative_error(outputs, want) <= tolerance
    assert state.keys() == want_state.keys()
    for path, value in want_state.items():
        assert state[path].dtype == dtype
        assert golden.relative_error(state[path], value) <= tolerance, path
    assert not outputs[files.padding(outputs.shape, lengths)].view(f"u{outputs.itemsize}").any()


@pytest.mark.parametrize("name", ["stack", "float64", "initial_state_zero_length"])
def test_goldens(name: str, tmp_path: Path) -> None:
    case = golden.load(name)
    model = lstmcli.load_model(files.write_model(tmp_path / "model.h5", case.model, case.dtype))
    outputs, state = model(case.x, lengths=case.lens, initial_state=case.initial or None)
    assert golden.relative_error(outputs, case.outputs) <= case.tolerance
    for path, value in case.state.items():
        assert golden.relative_error(state[path], value) <= case.tolerance, path


def test_the_example_of_the_readme() -> None:
    x = np.random.default_rng(0).random((5, 10, 20), np.float32)
    model = lstmcli.init_model(input_size=20, units=[7], seed=0)
    outputs, state = model(x, lengths=np.array([4, 9, 10, 5, 10]))
    assert (outputs.shape, outputs.dtype) == ((5, 10, 7), np.float32)
    assert {path: value.shape for path, value in state.items()} == {"0/c": (5, 7), "0/h": (5, 7)}
    np.testing.assert_array_equal(state["0/h"], outputs[np.arange(5), [3, 8, 9, 4, 9]])


def test_command_gives_the_same_bits(case: Case) -> None:
    model = lstmcli.load_model(case.weights)
    files.assert_same_bits(model(case.x, lengths=case.lengths), case.result)
    files.assert_same_bits(model(case.x, lengths=case.lengths.tolist(), threads=2), case.result)


def test_result_file_is_a_model(case: Case) -> None:
    model = lstmcli.load_model(str(case.folder / "result.h5"))
    files.assert_same_bits(model(case.x, lengths=case.lengths), case.result)


def test_without_lengths_every_sequence_is_full(case: Case) -> None:
    model = lstmcli.load_model(case.weights)
    files.assert_same_bits(model(case.x), model(case.x, lengths=np.full(13, 17)))


@pytest.mark.parametrize("shape", [(0, 5, 20), (4, 0, 20), (0, 0, 20)])
def test_empty_batches(shape: tuple[int, int, int], case: Case) -> None:
    outputs, state = lstmcli.load_model(case.weights)(np.zeros(shape, np.float32), lengths=[0] * shape[0])
    assert outputs.shape == (*shape[:2], 5)
    assert state["0/c"].shape == (shape[0], 21)
    assert not any(value.any() for value in state.values())


def test_length_zero_returns_the_initial_state(case: Case) -> None:
    rng = np.random.default_rng(0)
    initial = {path: rng.normal(size=value.shape).astype(np.float32) for path, value in case.state.items()}
    outputs, state = lstmcli.load_model(case.weights)(case.x, lengths=np.zeros(13, int), initial_state=initial)
    files.assert_same_bits((outputs, state), (np.zeros_like(case.outputs), initial))


@pytest.mark.parametrize("split", [1, 2, 8, 16])
def test_two_halves_with_the_state_between_are_one_pass(split: int, case: Case) -> None:
    model = lstmcli.load_model(case.weights)
    first, between = model(case.x[:, :split], lengths=np.minimum(case.lengths, split))
    second, final = model(case.x[:, split:], lengths=np.maximum(case.lengths - split, 0), initial_state=between)
    files.assert_same_bits((np.concatenate([first, second], axis=1), final), case.result)


def test_no_argument_is_modified(case: Case) -> None:
    """Arrays that cannot be written are taken, and what can be written is left alone."""
    model = lstmcli.load_model(case.weights)
    x, lengths = case.x.copy(), case.lengths.copy()
    initial = {path: np.full_like(value, 0.5) for path, value in case.state.items()}
    model(x, lengths=lengths, initial_state=initial)
    assert files.bits(x) == files.bits(case.x)
    assert files.bits(lengths) == files.bits(case.lengths)
    assert all((value == 0.5).all() for value in initial.values())
    for value in (x, lengths, *initial.values()):
        value.flags.writeable = False
    model(x, lengths=lengths, initial_state=initial)


def test_results_do_not_share_memory_with_each_other_or_with_a_later_call(case: Case) -> None:
    model = lstmcli.load_model(case.weights)
    initial = {path: np.zeros_like(value) for path, value in case.state.items()}
    outputs, state = model(case.x, lengths=case.lengths, initial_state=initial)
    model(case.x[::-1], lengths=case.lengths[::-1])
    files.assert_same_bits((outputs, state), case.result)
    arrays = [outputs, *state.values(), *initial.values()]
    for k, one in enumerate(arrays):
        assert not any(np.shares_memory(one, other) for other in arrays[k + 1 :])


@pytest.mark.parametrize(("dtype", "computed"), [("<f2", "<f4"), (">f4", "<f4"), (">f8", "<f8")])
def test_other_floats_are_converted(dtype: str, computed: str, case: Case) -> None:
    model = lstmcli.load_model(case.weights)
    x = case.x.astype(dtype)
    got = model(x, lengths=case.lengths)
    assert got[0].dtype == computed
    files.assert_same_bits(got, model(x.astype(computed), lengths=case.lengths))


def test_any_memory_layout(case: Case) -> None:
    model = lstmcli.load_model(case.weights)
    wide = np.full((26, 20, 40), np.nan, np.float32)
    wide[::2, 3:, ::-2] = case.x
    for x in (np.asfortranarray(case.x), wide[::2, 3:, ::-2]):
        files.assert_same_bits(model(x, lengths=case.lengths), case.result)


def test_seeds() -> None:
    x = np.random.default_rng(0).random((2, 3, 4), np.float32)
    first, again, other = (lstmcli.init_model(input_size=4, units=[3, 2], seed=seed)(x)[0] for seed in (1, 1, 2))
    assert files.bits(first) == files.bits(again)
    assert not np.isclose(first, other).all()


def test_errors_say_what_came(case: Case) -> None:
    model = lstmcli.load_model(case.weights)
    with pytest.raises(DataError, match=r"row 3\b.*18"):
        model(case.x, lengths=np.where(np.arange(13) == 3, 18, case.lengths))
    with pytest.raises(DataError, match=r"row 0\b.*-1"):
        model(case.x, lengths=np.full(13, -1))
    with pytest.raises(DataError, match=r"12"):
        model(case.x, lengths=case.lengths[:12])
    with pytest.raises(DataError, match=r"19"):
        model(case.x[:, :, :19], lengths=case.lengths)
    with pytest.raises(DataError, match=r"\(17, 20\)"):
        model(case.x[0])
    with pytest.raises(DataError, match="int"):
        model(np.ones((13, 17, 20), int))
    with pytest.raises(DataError, match="0/c"):
        model(case.x, initial_state={**case.state, "0/c": case.state["0/c"][:, :20]})
    with pytest.raises(ValueError, match="2/h"):
        model(case.x, initial_state={**case.state, "2/h": case.state["0/h"]})


def test_what_says_which_steps_are_valid(case: Case) -> None:
    model = lstmcli.load_model(case.weights)
    mask = np.arange(17) < case.lengths[:, None]
    for said in ({"lengths": case.lengths[:, None]}, {"mask": mask}, {"mask": mask.astype(float).tolist()}):
        files.assert_same_bits(model(case.x, **said), case.result)  # type: ignore[arg-type]
    for wrong in ({"mask": mask, "lengths": case.lengths}, {"mask": mask, "padding": "pre"}):
        with pytest.raises(UsageError, match=r"^mask: says itself which steps are valid; leave lengths and padding out$"):
            model(case.x, **wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"^padding: expected post or pre, got 'front'$"):
        model(case.x, case.lengths, padding="front")
    with pytest.raises(DataError, match=r"^mask: expected shape \(13, 17\), got \(17, 13\)$"):
        model(case.x, mask=mask.T)
    with pytest.raises(DataError, match=r"^mask, row 0, step 1: expected the ones of a row in one run"):
        model(case.x, mask=np.broadcast_to(np.arange(17) % 2 == 0, (13, 17)))


def test_a_lone_cell_is_a_model() -> None:
    stack = lstmcli.init_model(4, [5], seed=1)
    x = np.random.default_rng(0).normal(size=(3, 6, 4)).astype(np.float32)
    outputs, state = stack.layers[0](x, [6, 0, 2])
    wanted, states = stack(x, [6, 0, 2])
    np.testing.assert_array_equal(outputs, wanted)
    assert state.keys() == {"c", "h"}
    for name, values in state.items():
        np.testing.assert_array_equal(values, states[f"0/{name}"])
    again, _ = stack.layers[0](x, [6, 0, 2], initial_state=state)
    assert (again != outputs).any()


def test_a_list_of_sequences_gives_the_bits_of_a_padded_batch(case: Case) -> None:
    model = lstmcli.load_model(case.weights)
    sequences = [x[:length] for x, length in zip(case.x, case.lengths, strict=True)]
    for one_after_the_other in (sequences, tuple(sequences)):
        outputs, state = model(one_after_the_other)
        assert [one.shape for one in outputs] == [(length, 5) for length in case.lengths]
        for one, wanted, length in zip(outputs, case.outputs, case.lengths, strict=True):
            assert files.bits(one) == files.bits(wanted[:length])
        files.assert_same_bits((outputs[0], state), (case.outputs[0, : case.lengths[0]], case.state))
    with pytest.raises(DataError, match=r"^x\[1\]: expected float16, .* \(length, 20\), got float32 \(2, 19\)$"):
        model([sequences[0], sequences[0][:2, :19]])
    with pytest.raises(DataError, match=r"^x\[1\]: expected float32, as x\[0\] is, got float64$"):
        model([sequences[0], sequences[0].astype(float)])
    with pytest.raises(
        DataError, match=r"^x: expected float16, .* got float32 \(\d+, 20\); x\[None\] makes one sequence a batch$"
    ):
        model(sequences[0])
    with pytest.raises(DataError, match=r"^x: expected an array .* or a list of arrays"):
        model([[1.0, 2.0], [3.0]])


def test_a_single_cell_takes_its_state_as_a_pair() -> None:
    model, x = lstmcli.init_model(4, [5], seed=1), np.random.default_rng(0).random((3, 6, 4), np.float32)
    _, state = model(x)
    files.assert_same_bits(model(x, initial_state=(state["0/c"], state["0/h"])), model(x, initial_state=state))
    assert not np.array_equal(model(x, initial_state=(state["0/h"], state["0/c"]))[0], model(x, initial_state=state)[0])
    with pytest.raises(DataError, match=r"^initial_state: expected arrays by the names 0/c, 0/h, 1/c, 1/h; got 2 values"):
        lstmcli.init_model(4, [5, 5])(x, initial_state=(state["0/c"], state["0/h"]))


def test_errors_are_short_and_name_what_was_meant(case: Case) -> None:
    model = lstmcli.load_model(case.weights)
    with pytest.raises(TypeError, match=r"^unexpected argument sequence_length: it is called lengths here$"):
        model(case.x, sequence_length=case.lengths)
    with pytest.raises(TypeError, match=r"^unexpected argument foo: expected x, lengths, initial_state"):
        model(case.x, foo=1)
    for call in (
        lambda: model(case.x[0]),
        lambda: lstmcli.load_model("nowhere"),
        lambda: lstmcli.run("nowhere", units=3),
        lambda: model.save(case.weights),
    ):
        with pytest.raises(lstmcli.LstmcliError) as caught:
            call()
        assert len(caught.traceback) <= 3  # this test, the lambda, and one call of the package
        assert caught.value.__cause__ is None


def test_models_are_shown_in_short() -> None:
    model = lstmcli.init_model(4, [5, 6], bidirectional=True, peepholes=True)
    assert repr(model) == "<lstmcli Stack of 2 layers: 4 -> 12, 1,282 parameters>"
    assert repr(model.layers[0].forward) == "<lstmcli Cell: 4 -> 5, 215 parameters>"
    page = model._repr_html_()
    assert page.count("<tr>") == 3
    assert "<td>bidirectional</td><td>10</td><td>12</td>" in page
    assert set(dir(lstmcli)) == set(lstmcli.__all__)


def test_a_saved_model_is_the_same(tmp_path: Path) -> None:
    model, x = lstmcli.init_model(4, [5], peepholes=True), np.random.default_rng(0).random((3, 6, 4), np.float32)
    model.save(tmp_path / "model.h5")
    files.assert_same_bits(lstmcli.load_model(tmp_path / "model.h5")(x), model(x))
    with pytest.raises(lstmcli.LstmcliError, match="exists already"):
        model.save(tmp_path / "model.h5")
    model.save(tmp_path / "model.h5", overwrite=True)


def test_run_does_what_the_command_does(case: Case, tmp_path: Path) -> None:
    steps: list[int] = []
    facts = lstmcli.run(
        case.x_npy,
        lens=case.lens_npy,
        weights=case.weights,
        output=tmp_path / "out.h5",
        save=["states", "outputs"],
        on_progress=lambda done, total: steps.append(done),
    )
    assert (tmp_path / "out.h5").read_bytes() == (case.folder / "result.h5").read_bytes()
    assert (facts["outputs"]["shape"], facts["output"]) == ([13, 17, 5], str(tmp_path / "out.h5"))
    assert sum(steps) == facts["valid_steps"] == case.lengths.sum()
    assert callable(lstmcli.run)  # still, after the modules of that name were loaded
    new = {"units": 7, "output": tmp_path / "new.h5", "residual": False, "dry_run": True}
    assert lstmcli.run(case.x_npy, **new)["model"]["units"] == [7]
    for wrong, kind, words in [
        ({"unit": 7}, TypeError, r"^run\(\) takes no option unit; it takes activation, axes"),
        ({}, UsageError, "expected either --units, for new weights, or --weights FILE"),
        ({"units": 7, "save": "output"}, UsageError, r"^save: expected outputs, states, cells, layers, pooled, got 'output'$"),
        ({"units": 7, "dtype": "int8"}, UsageError, r"^dtype: expected float32, float64, bfloat16, got 'int8'$"),
    ]:
        with pytest.raises(kind, match=words):
            lstmcli.run(case.x_npy, **wrong)


@pytest.mark.parametrize(
    ("option", "expected", "values"),
    [
        *((name, "a whole number from 1 on", (0, -1, 1.5, "2", float("nan"))) for name in ("window", "stride", "threads")),
        ("max_memory", "a whole number from 1 on", (0, -1, 0.5, "1GB", float("inf"))),
        ("units", "a whole number from 1 on", (0, -3, 7.5, "7", [7, 0])),
        ("projection", "a whole number from 1 on", (0, -1, 2.5)),
        ("seed", "a whole number from 0 on", (-1, 0.5, "0")),
        ("stop_after", "a number of seconds from 0 on", (-1, float("nan"), "55m")),
        *((name, "a number", ("1",)) for name in ("forget_bias", "cell_clip", "projection_clip")),
    ],
)
def test_run_takes_the_numbers_of_the_command(
    option: str, expected: str, values: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the command refuses with exit code 2 is refused before anything is read: the input is not there."""
    monkeypatch.chdir(tmp_path)
    for value in values:
        wrong = value[-1] if isinstance(value, list) else value
        with pytest.raises(UsageError, match=f"^{option}: expected {expected}, got {wrong!r}$"):
            lstmcli.run("missing.npy", **{"units": 7, option: value})
    assert not list(tmp_path.iterdir())


def test_run_takes_numbers_of_numpy(case: Case, tmp_path: Path) -> None:
    options: dict[str, Any] = {"lens": case.lens_npy, "projection": np.int16(5), "seed": np.uint8(3), "threads": np.int32(1)}
    options |= {"forget_bias": np.float32(0.5), "units": np.array([7, 3]), "max_memory": 1e9}
    facts = lstmcli.run(case.x_npy, output=tmp_path / "a.h5", **options)
    assert facts["model"]["units"] == [7, 3]
    plain: dict[str, Any] = {"projection": 5, "seed": 3, "threads": 1, "forget_bias": 0.5, "units": [7, 3]}
    lstmcli.run(case.x_npy, lens=case.lens_npy, output=tmp_path / "b.h5", **plain)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_run_takes_the_options_and_the_limits_of_the_command() -> None:
    from lstmcli import api
    from lstmcli.cli.commands.run_and_predict import run

    with pytest.raises(TypeError) as error:
        lstmcli.run("x.npy", **{"": 0})
    taken = {*str(error.value).partition("it takes ")[2].split(", "), "time_major", "stop_after"}
    about_cluster_and_terminal = {"inputs", "plan", "shard", "scheduler", "json", "quiet", "verbose", "progress"}
    assert taken == {param.name for param in run.params} - about_cluster_and_terminal
    limits = {param.name: param.type.min for param in run.params if isinstance(param.type, click.IntRange)}
    assert limits | {"units": 1, "max_memory": 1} == api.LEAST


def test_run_takes_the_choices_of_the_command() -> None:
    from lstmcli import api
    from lstmcli.cli.commands.run_and_predict import run

    choices = {param.name: getattr(param.type, "choices", getattr(param.type, "known", None)) for param in run.params}
    taken = {name: tuple(values) for name, values in choices.items() if values is not None and name != "progress"}
    assert taken == api.CHOICES


def test_run_pools(case: Case, tmp_path: Path) -> None:
    lstmcli.run(case.x_npy, lens=case.lens_npy, weights=case.weights, output=tmp_path / "out.h5", pool="final", layout="flat")
    with lstmcli.open_result(tmp_path / "out.h5") as result:
        assert files.bits(np.asarray(result.pooled)) == files.bits(case.state["1/h"])
        assert result.outputs[3].shape == (case.lengths[3], 5)


@pytest.mark.parametrize("whole", [False, True])
def test_a_model_that_was_called_is_freed_pickled_and_copied(whole: bool, case: Case, tmp_path: Path) -> None:
    model = lstmcli.load_model(case.weights)

    def call(of: lstmcli.Model) -> Any:
        return of.predict(case.x, case.lengths) if whole else of(case.x, case.lengths)[0]

    expected = call(model)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert call(other).tobytes() == expected.tobytes()
    gone = weakref.ref(model)
    del model, other
    gc.collect()
    assert gone() is None
