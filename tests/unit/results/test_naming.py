"""A result gets its name only when it is whole. What a failed body has recorded stays, and only that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmcli.blocks import Span, Valid
from lstmcli.errors import BusyError, DataError, OutputError, StorageError
from lstmcli.files.partial_file import Partial
from lstmcli.inputs.nonfinite import Nonfinite
from lstmcli.model.new_weights import init_model
from lstmcli.results.formats.paths import Paths
from lstmcli.results.formats.result import Metadata
from lstmcli.results.journal import StoredSpan
from lstmcli.results.naming import publishing
from lstmcli.results.verify import verify

LENGTHS = np.array([2, 0, 3, 1])
ROWS = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
ARRAYS: dict[str, Any] = {"outputs": ((4, 3, 5), ROWS.dtype), "state/0/h": ((4, 5), ROWS.dtype)}
SPANS = [Span(0, 2, 0, 2, last=True), Span(2, 2, 0, 3, last=True)]


def fill(result: Any, spans: list[Span]) -> None:
    ends = np.r_[0, np.cumsum(LENGTHS)]
    for span in spans:
        rows = ROWS[ends[span.first] : ends[span.first + span.count]]
        states = np.full((span.count, 5), span.first, np.float32)
        result.store(span, {"outputs": rows, "state/0/h": states}, Nonfinite(), None, 0)


def opened(paths: Paths, resume: bool = False, starts: list[int] | None = None, **how: Any) -> Any:
    valid = Valid(np.array(starts or [0, 0, 0, 0]), LENGTHS)
    metadata = Metadata(init_model(2, [5]), valid, {"options": {}}, Nonfinite())
    return publishing(paths, ARRAYS, metadata, {"name": "run"}, overwrite=False, resume=resume, **how)


def seal_and_die(paths: Paths) -> None:
    with opened(paths) as result:
        fill(result, SPANS)
        result.seal(Nonfinite())
        raise KeyboardInterrupt


def fill_and_fail(paths: Paths, spans: list[Span], error: type[Exception]) -> None:
    with opened(paths) as result:
        fill(result, spans)
        raise error("no")


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_filled_in_two_runs(tmp_path: Path) -> None:
    with opened(Paths(tmp_path / "whole.h5")) as result:
        fill(result, SPANS)
        result.seal(Nonfinite())
    with pytest.raises(StorageError, match="--resume"):
        fill_and_fail(Paths(tmp_path / "resumed.h5"), SPANS[:1], StorageError)
    assert left(tmp_path) == ["resumed.h5.journal", "resumed.h5.partial", "whole.h5"]
    with opened(Paths(tmp_path / "resumed.h5"), resume=True) as result:
        assert result.restored({}).span == SPANS[0]
        fill(result, SPANS[1:])
        result.seal(Nonfinite())
    assert left(tmp_path) == ["resumed.h5", "whole.h5"]
    assert (tmp_path / "resumed.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert "2 arrays" in verify(str(tmp_path / "whole.h5"))


@pytest.mark.parametrize("starts", [[0, 0, 0, 0], [1, 0, 0, 2]])
def test_rows_lie_where_the_valid_steps_are(starts: list[int], tmp_path: Path) -> None:
    import h5py

    with opened(Paths(tmp_path / "out.h5"), starts=starts) as result:
        fill(result, SPANS)
        result.seal(Nonfinite())
    padded, at = np.zeros((4, 3, 5), np.float32), 0
    for row, (start, length) in enumerate(zip(starts, LENGTHS.tolist(), strict=True)):
        padded[row, start : start + length] = ROWS[at : at + length]
        at += length
    with h5py.File(tmp_path / "out.h5") as file:
        np.testing.assert_array_equal(file["outputs"][:], padded, strict=True)
        assert ("starts" in file) == any(starts)
    verify(str(tmp_path / "out.h5"))


@pytest.mark.parametrize(("error", "spans"), [(StorageError, []), (DataError, SPANS), (ZeroDivisionError, [])])
def test_nothing_stays_where_it_is_of_no_use(error: type[Exception], spans: list[Span], tmp_path: Path) -> None:
    with pytest.raises(error):
        fill_and_fail(Paths(tmp_path / "out.h5"), spans, error)
    assert left(tmp_path) == []


@pytest.mark.parametrize("name", ["out.h5", "out.npy"])
def test_what_was_sealed_only_needs_its_name(name: str, tmp_path: Path) -> None:
    paths = Paths(tmp_path / name)
    if name == "out.npy":
        paths = Paths(tmp_path / name, tmp_path / "out.npz", tmp_path / "out.model.h5")
    with pytest.raises(KeyboardInterrupt):
        seal_and_die(paths)
    assert f"{name}.partial" in left(tmp_path)
    with opened(paths, resume=True) as result:
        assert result is None
    assert left(tmp_path) == sorted(path.name for path in paths.all())


def test_another_name_of_a_file_beside_the_output_is_refused(tmp_path: Path) -> None:
    main, model = tmp_path / "out.npy", tmp_path / "out.model.h5"
    with pytest.raises(KeyboardInterrupt):
        seal_and_die(Paths(main, tmp_path / "a.npz", model))
    before = left(tmp_path)
    with (
        pytest.raises(DataError, match=r"files was \['a.npz', 'out.model.h5'\], is now"),
        opened(Paths(main, tmp_path / "b.npz", model), resume=True),
    ):
        raise AssertionError
    assert left(tmp_path) == before


def test_a_table_whose_values_have_no_place_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "out.csv.values.partial").mkdir()
    with pytest.raises(OutputError, match=r"out\.csv\.values\.partial: cannot be created"), opened(Paths(tmp_path / "out.csv")):
        raise AssertionError
    assert left(tmp_path) == ["out.csv.values.partial"]


def test_an_output_that_is_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out.h5").write_text("precious")
    with pytest.raises(OutputError, match="exists already"), opened(Paths(tmp_path / "out.h5")):
        raise AssertionError
    assert left(tmp_path) == ["out.h5"]


def test_workers_of_a_dead_client_are_waited_for(tmp_path: Path) -> None:
    others = Partial(tmp_path / "out.h5", overwrite=False)
    calls = []

    def wait() -> bool:
        calls.append(1)
        if len(calls) == 3:
            others.close()
        return True

    with opened(Paths(tmp_path / "out.h5"), wait=wait) as result:
        fill(result, SPANS)
        result.seal(Nonfinite())
    assert len(calls) == 3
    assert left(tmp_path) == ["out.h5"]


def test_another_run_is_not_waited_for(tmp_path: Path) -> None:
    def wait() -> bool:
        raise AssertionError

    with opened(Paths(tmp_path / "out.h5")) as result:
        with pytest.raises(BusyError, match="another run"), opened(Paths(tmp_path / "out.h5"), resume=True, wait=wait):
            raise AssertionError
        fill(result, SPANS)
        result.seal(Nonfinite())
    assert left(tmp_path) == ["out.h5"]


@pytest.mark.parametrize("flipped", [False, True])
def test_what_is_ahead_of_its_turn_is_kept_while_it_is_what_was_stored(flipped: bool, tmp_path: Path) -> None:
    def stop() -> None:
        with opened(Paths(tmp_path / "out.h5")) as unpublished:
            rows = {"outputs": ROWS[2:], "state/0/h": np.full((2, 5), 2, np.float32)}
            stored = StoredSpan(SPANS[1], unpublished.result.put(SPANS[1], rows), Nonfinite(), None)
            unpublished.note_ahead([[stored]])
            raise StorageError("no")

    with pytest.raises(StorageError, match="--resume"):
        stop()
    if flipped:
        content = bytearray((tmp_path / "out.h5.partial").read_bytes())
        content[content.index(ROWS[2:].tobytes()[:20])] ^= 1
        (tmp_path / "out.h5.partial").write_bytes(content)
    with opened(Paths(tmp_path / "out.h5"), resume=True) as unpublished:
        assert unpublished.restored({}) is None
        assert list(unpublished.ahead) == ([] if flipped else [2])
        fill(unpublished, SPANS)
        unpublished.seal(Nonfinite())
    with opened(Paths(tmp_path / "whole.h5")) as whole:
        fill(whole, SPANS)
        whole.seal(Nonfinite())
    assert (tmp_path / "out.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
