"""Lengths and masks in files: each form against what it says, each malformed one against its error."""

import itertools
import os
import tracemalloc
from contextlib import closing

import h5py
import numpy as np
import pytest
from helpers.sources import as_npy, header, npy_bytes, save_h5, save_npy, stream

from lstmcli.errors import DataError, MissingInputError, UsageError
from lstmcli.inputs.beside import masks, number_lines
from lstmcli.inputs.open_input import open_source
from lstmcli.inputs.valid_steps import read_valid_steps

LENS = [0, 200, 3, 17]


def read_lengths(spec, source):
    found = read_valid_steps(spec, None, source)
    assert not found.valid.starts.any()
    return found.valid.lengths, found.origin


@pytest.mark.parametrize("dtype", [o + k for o in "<>" for k in ("i2", "i4", "i8", "u2", "u4", "u8")] + ["u1"])
@pytest.mark.parametrize("kind", ["npy", "h5", "h5-gzip", "pipe"])
def test_lengths_of_any_integer_dtype(dtype, kind, source, tmp_path):
    lens, path = np.array(LENS, dtype), tmp_path / "lens"
    if kind == "npy":
        path.write_bytes(as_npy(lens))
        got, name = read_lengths(str(path), source)
        assert name == str(path)
    elif kind == "pipe":
        fd = stream(as_npy(lens))
        got, _ = read_lengths(f"/dev/fd/{fd}", source)
        os.close(fd)
    else:
        save_h5(path, lens, **({"compression": "gzip"} if kind == "h5-gzip" else {}))
        got, name = read_lengths(f"{path}::/x", source)
        assert name == f"{path}::/x"
    np.testing.assert_array_equal(got, np.array(LENS, np.int64), strict=True)


def test_lengths_as_text(source, tmp_path):
    path = tmp_path / "lens.txt"
    for content in ("0\n200\n3\n17", "0\n200\n3\n17\n\n \n", " 0\r\n+200\r\n3 \r\n017\r\n", "\ufeff0\n200\n3\n17\n"):
        path.write_bytes(content.encode())
        np.testing.assert_array_equal(read_lengths(str(path), source)[0], LENS)
    path.write_text("")
    with closing(open_source(save_npy(tmp_path / "none.npy", np.ones((0, 2, 3))))) as empty:
        assert read_lengths(str(path), empty)[0].shape == (0,)


GOOD_TEXT = {
    "0,200,3,17": None, "0 200 3 17\n": None, "0, 200,\n3, 17\n": None, "0;200;3;17": None, "0\t200\t3\t17": None,
    "[0, 200, 3, 17]": None, "[\n  0,\n  200,\n  3,\n  17\n]\n": None, "length\n0\n200\n3\n17\n": None,
    "# of x.npy\n0\n\n200 # the long one\n3\n17\n": None, "seq_len,\n0,\n200,\n3,\n17,\n": None,
    "id,length\na1,0\nb2,200\nc3,3\nd4,17\n": None, "id\tlens\n1\t0\n2\t200\n3\t3\n4\t17\n": None,
    'id,n\n"a,b",0\n"c ""d""",200\ne,3\nf,17\n': "n", "len;other\n0;1\n200;2\n3;3\n17;4\n": "len",
}  # fmt: skip


@pytest.mark.parametrize("content", GOOD_TEXT, ids=lambda content: repr(content[:12]))
@pytest.mark.parametrize("piece", [1, 5, 1 << 20])
def test_lengths_as_people_write_them(piece, content, source, tmp_path, monkeypatch):
    monkeypatch.setattr(number_lines, "TEXT_PIECE", piece)
    if not GOOD_TEXT[content] and "id" not in content:  # a line of a table is not cut
        monkeypatch.setattr(number_lines, "LONG_LINE", piece)
    path, column = tmp_path / "lens.csv", GOOD_TEXT[content]
    path.write_text(content)
    found = read_valid_steps(f"{path}::{column}" if column else str(path), None, source)
    np.testing.assert_array_equal(found.valid.lengths, np.array(LENS, np.int64), strict=True)
    assert found.notes == ()


@pytest.mark.parametrize("content", ["0.0\n200\n3.0\n17.\n", "[0, 200.0, 3, 17]", "x,length\n.5,0.0\n.5,200\n.5,3\n.5,17\n"])
def test_whole_floats_are_said(content, source, tmp_path):
    (tmp_path / "lens.txt").write_text(content)
    found = read_valid_steps(str(tmp_path / "lens.txt"), None, source)
    np.testing.assert_array_equal(found.valid.lengths, np.array(LENS, np.int64), strict=True)
    assert [note.partition(": ")[2] for note in found.notes] == ["the lengths are written as floats, and all of them are whole"]
    assert read_valid_steps(str(save_npy(tmp_path / "lens.npy", np.array(LENS, float))), None, source).notes


@pytest.mark.parametrize("end", ["\n", ", "])
def test_many_lengths_take_little_memory(end):
    """As text lies in pieces: objects of Python for all lines would take a hundred bytes each."""
    count = 1_000_000
    lines = (f"{k % 500}{end}" for k in range(count))
    pieces = ("".join(part).encode() for part in iter(lambda: list(itertools.islice(lines, 5000)), []))
    tracemalloc.start()
    try:
        numbers, _ = number_lines.parse_numbers(pieces, "lens.txt")
        assert tracemalloc.get_traced_memory()[1] < 3 * 8 * count + 20 * number_lines.TEXT_PIECE
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(numbers, np.arange(count) % 500)


BAD_TEXT = {
    "0\n200\n3.5\n17\n": "line 3: expected whole numbers, got 3.5",
    "0\n200\nnan\n17\n": "line 3: expected whole numbers, got nan",
    "0\n1_0\n3\n17\n": "line 2: expected whole numbers, got 1_0",
    "0\n\x1b[2J\n3\n17\n": r"line 2: expected whole numbers, got '\\x1b\[2J'",
    f"0\n{1 << 64}\n3\n17\n": "line 2: expected whole numbers, got 18446744073709551616",
    "0,200,,3,17\n": "line 1: expected whole numbers, got 0,200,,3,17",
    "# of x\n\n0,,200\n": "line 3: expected whole numbers, got 0,,200",
    "a,0\nb,200\n": "line 1: expected whole numbers, got a,0",
    "id,size\na,0\nb,200\n": r"lens\.txt: a table; there is id, size; name the column to read: .*lens\.txt::NAME",
    "id,length\na,0\nb\n": "line 3: expected 2 columns or more, got b",
    "0\n200\n3\n": "expected 4 lengths, one for each sequence of the input, got 3 of them",
    "0\n200\n-3\n17\n": r"row 2: expected 0 <= length <= 200 \(the steps of .*x\.npy\), got -3; rows like that: 1 of 4",
    "0\n" * 100_000: "expected 4 lengths, got more than",
}


def test_a_column_that_is_not_there(source, tmp_path):
    (tmp_path / "lens.csv").write_text("id,size\na,0\n")
    with pytest.raises(DataError, match=r"lens\.csv::length: no such column; there is id, size$"):
        read_lengths(f"{tmp_path / 'lens.csv'}::length", source)


@pytest.mark.parametrize("content", BAD_TEXT, ids=lambda content: repr(content[:12]))
def test_bad_lengths_as_text(content, source, tmp_path):
    (tmp_path / "lens.txt").write_text(content)
    with pytest.raises(DataError, match=BAD_TEXT[content]) as caught:
        read_lengths(str(tmp_path / "lens.txt"), source)
    assert str(caught.value).isprintable()


BAD_LENS = {
    "negative": (np.array([0, -1, -2, 3]), "row 1: expected 0 <= length <= 200 .*, got -1; rows like that: 2 of 4"),
    "too long": (np.array([0, 1, 201, 3]), "row 2: expected 0 <= length <= 200 .*, got 201; rows like that: 1 of 4"),
    "uint64": (np.array([0, 1, 2, 1 << 63], "u8"), "row 3: .*, got 9223372036854775808"),
    "big-endian": (np.array([0, 1, 2, 300], ">u2"), "row 3: .*, got 300"),
    "nan": (np.array([0, 1, np.nan, 2.5]), "row 2: expected a whole number, got nan; rows like that: 2 of 4"),
    "fraction": (np.array([0, 1.5, 2, 3], "f4"), "row 1: expected a whole number, got 1.5; rows like that: 1 of 4"),
    "infinite": (np.array([0, 1, 2, np.inf], "f2"), "row 3: expected a whole number, got inf"),
    "bool": (np.array([True] * 4), "expected lengths of an integer dtype, got bool"),
    "complex": (np.ones(4, complex), "expected lengths of an integer dtype, got complex128"),
    "rank 2": (np.ones((4, 2), int), r"expected 4 lengths, .* or a mask \(4, 200\), got shape \(4, 2\)$"),
    "bools in a column": (np.ones((4, 1), bool), "expected lengths of an integer dtype, got bool"),
    "a mask with time first": (np.ones((200, 4), int), r"or a mask \(4, 200\), got shape \(200, 4\); save mask\.T$"),
    "a mask with a hole": (np.eye(4, 200) + np.eye(4, 200, 2), "row 0, step 1: expected the ones of a row in one run"),
    "a mask of lengths": (np.full((4, 200), 17), "row 0, step 0: expected a mask of 0 and 1, got 17"),
    "rank 0": (np.array(4), r"expected 4 lengths, .* got shape \(\)"),
    "too few": (np.ones(3, int), "expected 4 lengths, one for each sequence of the input, got 3 of them"),
    "too many": (np.ones(90_000, int), "expected 4 lengths, .* got 90000 of them"),
}


@pytest.mark.parametrize("case", BAD_LENS)
@pytest.mark.parametrize("kind", ["npy", "h5"])
def test_bad_lengths(case, kind, source, tmp_path):
    lens, message = BAD_LENS[case]
    spec = save_npy(tmp_path / "lens.npy", lens) if kind == "npy" else save_h5(tmp_path / "lens.h5", lens)
    with pytest.raises(DataError, match=message):
        read_lengths(spec, source)


def test_bad_lengths_files(source, tmp_path):
    path = tmp_path / "lens.npy"
    whole = as_npy(np.array(LENS))
    for content, message in [
        (whole[:-1], r"expected 160 bytes for shape \(4,\) of int64, got 159"),
        (whole + b"!", r"expected 160 bytes for shape \(4,\) of int64, got 161"),
        (whole[:50], "ended at byte 50, expected 78 bytes more"),
        (npy_bytes(header("'|O'", shape="(4,)"), bytes(32)), "objects and records are never read"),
        (as_npy(np.array(["a"] * 4)), "expected lengths of an integer dtype, got <U1"),
    ]:
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_lengths(str(path), source)
    with pytest.raises(MissingInputError):
        read_lengths(str(tmp_path / "no.npy"), source)
    with pytest.raises(MissingInputError):
        read_lengths(str(tmp_path), source)
    path.write_bytes(whole)
    with pytest.raises(DataError, match="no HDF5 file, NPZ or table"):
        read_lengths(f"{path}::/x", source)


def test_lengths_are_not_read_from_standard_input(source):
    with pytest.raises(UsageError, match=r"^--lens -: only --input may be -"):
        read_lengths("-", source)


def test_lengths_in_hdf5_without_a_name(source, tmp_path):
    path = tmp_path / "lens.h5"
    with h5py.File(path, "w") as f:
        f["any"], f["x"] = LENS, np.ones((4, 2))
    assert read_lengths(str(path), source)[1] == f"{path}::/any"
    with h5py.File(path, "a") as f:
        f["other"] = [1, 2, 3, 4]
    with pytest.raises(DataError, match=r"found 2: /any \(4,\) int64, /other \(4,\) int64; name the one"):
        read_lengths(str(path), source)
    with h5py.File(path, "a") as f:
        f["lens"] = [4, 3, 2, 1]
    np.testing.assert_array_equal(read_lengths(str(path), source)[0], [4, 3, 2, 1])


def test_lengths_that_were_never_written(source, tmp_path):
    path = tmp_path / "lens.h5"
    for options in ({}, {"chunks": (2,)}):
        with h5py.File(path, "w") as f:
            f.create_dataset("lens", (4,), "i8", **options)
            if options:
                f["lens"][:2] = 1
        with pytest.raises(DataError, match=r"::/lens: .*written"):
            read_lengths(str(path), source)


def test_lengths_beside_the_input(tmp_path):
    path = tmp_path / "x.h5"
    x = np.ones((4, 200, 3), np.float32)
    for layout in ({}, {"compression": "gzip"}):
        with h5py.File(path, "w") as f:
            f.create_dataset("g/x", data=x, **layout)
        with closing(open_source(str(path))) as source:
            lengths, name = read_lengths(None, source)
            assert name is None
            np.testing.assert_array_equal(lengths, np.full(4, 200), strict=True)
        for added, expected in [("sequence_length", 3), ("g/lens", 5), ("g/lengths", 7)]:
            with h5py.File(path, "a") as f:
                f[added] = np.full(4, expected, ">i2")
            with closing(open_source(str(path))) as source:
                lengths, name = read_lengths(None, source)
                assert name == f"{path}::/{added}"
                np.testing.assert_array_equal(lengths, np.full(4, expected), strict=True)
                assert read_lengths("none", source)[1] is None
                assert read_lengths("none", source)[0].tolist() == [200] * 4


def test_bad_lengths_beside_the_input_are_not_ignored(tmp_path):
    path = tmp_path / "x.h5"
    for lens in (np.ones(3, int), np.ones(4) / 2, h5py.SoftLink("/y"), np.array([1, 2, 3, 999])):
        with h5py.File(path, "w") as f:
            f["x"], f["lengths"] = np.ones((4, 200, 3)), lens
        with closing(open_source(str(path))) as source:
            with pytest.raises(DataError, match="lies beside the input, --lens none ignores it"):
                read_lengths(None, source)
            assert read_lengths("none", source)[1] is None


def test_no_lengths(source):
    for spec in (None, "none"):
        lengths, name = read_lengths(spec, source)
        assert name is None
        np.testing.assert_array_equal(lengths, np.full(4, 200, np.int64), strict=True)


# Other forms


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<i8", "u2"])
@pytest.mark.parametrize("shape", [(4,), (4, 1), (1, 4)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_columns_rows_and_whole_floats(shape, dtype, order, source, tmp_path):
    lens = np.array(LENS, dtype).reshape(shape, order=order)
    for spec in (save_npy(tmp_path / "lens.npy", lens), save_h5(tmp_path / "lens.h5", lens)):
        np.testing.assert_array_equal(read_lengths(spec, source)[0], np.array(LENS), strict=True)


STARTS = np.array([0, 0, 150, 183])
MASK = (np.arange(200) >= STARTS[:, None]) & (np.arange(200) < (STARTS + LENS)[:, None])


@pytest.mark.parametrize("dtype", ["?", "<i8", ">f4"])
@pytest.mark.parametrize("kind", ["npy", "fortran", "h5", "h5-gzip", "pipe"])
@pytest.mark.parametrize("piece", [1, 400, 1 << 20])
def test_masks(dtype, kind, piece, source, tmp_path, monkeypatch):
    monkeypatch.setattr(masks, "PIECE", piece)
    mask = MASK.astype(dtype)
    if kind == "pipe":
        fd = stream(as_npy(mask), 100)
        found = read_valid_steps(f"/dev/fd/{fd}", None, source)
        os.close(fd)
    elif kind in ("npy", "fortran"):
        spec = save_npy(tmp_path / "m", mask if kind == "npy" else np.asfortranarray(mask))
        found = read_valid_steps(f"{spec}.npy", None, source)
    else:
        spec = save_h5(tmp_path / "m", mask, **({"compression": "gzip", "chunks": (3, 70)} if kind == "h5-gzip" else {}))
        found = read_valid_steps(spec, None, source)
    assert found.padding == "mask"
    assert found.notes == ()
    np.testing.assert_array_equal(found.valid.lengths, np.array(LENS), strict=True)
    np.testing.assert_array_equal(found.valid.starts, STARTS, strict=True)


def test_the_row_of_a_bad_mask_is_that_of_the_whole(source, tmp_path, monkeypatch):
    monkeypatch.setattr(masks, "PIECE", 400)
    mask = MASK.astype(int)
    mask[3, 190] = 0
    with pytest.raises(DataError, match=r"m\.npy, row 3, step 190: expected the ones of a row in one run"):
        read_valid_steps(save_npy(tmp_path / "m.npy", mask), None, source)


def test_masks_that_a_pipe_cannot_give(source):
    fd = stream(as_npy(np.asfortranarray(MASK)))
    with pytest.raises(DataError, match="a mask in Fortran order cannot be read from a pipe"):
        read_valid_steps(f"/dev/fd/{fd}", None, source)
    os.close(fd)
    fd = stream(as_npy(MASK) + b"!")
    with pytest.raises(DataError, match="more bytes follow"):
        read_valid_steps(f"/dev/fd/{fd}", None, source)
    os.close(fd)


def test_one_sequence_and_one_step(tmp_path):
    """Where shapes of lengths and of masks are the same, the dtype tells them apart, or both mean the same."""
    with closing(open_source(save_npy(tmp_path / "x.npy", np.ones((1, 5, 3))))) as source:
        found = read_valid_steps(save_npy(tmp_path / "m.npy", [[0, 1, 1, 0, 0]]), None, source)
        assert (found.valid.starts.tolist(), found.valid.lengths.tolist()) == ([1], [2])
        assert read_lengths(save_npy(tmp_path / "l.npy", [[4]]), source)[0].tolist() == [4]
    with closing(open_source(save_npy(tmp_path / "x.npy", np.ones((3, 1, 3))))) as source:
        for lens in (np.array([[1], [0], [1]]), np.array([[True], [False], [True]])):
            found = read_valid_steps(save_npy(tmp_path / "l.npy", lens), None, source)
            assert found.valid.lengths.tolist() == [1, 0, 1]


def test_padding_in_front(source, tmp_path):
    spec = save_npy(tmp_path / "lens.npy", LENS)
    found = read_valid_steps(spec, "pre", source)
    assert found.padding == "pre"
    np.testing.assert_array_equal(found.valid.starts, np.array([0, 0, 197, 183]), strict=True)  # 0: no step is valid
    assert not read_valid_steps(spec, "post", source).valid.starts.any()
    with pytest.raises(UsageError, match=r"^--padding pre: .*m\.npy is a mask, which says itself where padding stands"):
        read_valid_steps(save_npy(tmp_path / "m.npy", MASK), "pre", source)
    with pytest.raises(UsageError, match=r"^--padding pre: no lengths are known"):
        read_valid_steps(None, "pre", source)
    assert read_valid_steps("none", "pre", source).valid.lengths.tolist() == [200] * 4


def open_with(path, x, **datasets):
    with h5py.File(path, "w") as f:
        f["x"] = x
        for name, value in datasets.items():
            f[name] = value
    return closing(open_source(f"{path}::/x"))


@pytest.mark.parametrize("name", ["seq_len", "seq_lengths", "sequence_lengths", "mask", "attention_mask"])
def test_other_names_beside_the_input(name, tmp_path):
    x, value = np.ones((4, 200, 3), np.float32), MASK if "mask" in name else LENS
    with open_with(tmp_path / "x.h5", x, **{name: value}) as source:
        found = read_valid_steps(None, None, source)
    assert (found.origin, found.valid.lengths.tolist(), found.notes) == (f"{tmp_path}/x.h5::/{name}", LENS, ())
    assert found.valid.starts.tolist() == (STARTS.tolist() if "mask" in name else [0] * 4)


def test_what_may_be_lengths_is_named(tmp_path):
    x = np.ones((4, 200, 3), np.float32)
    with open_with(
        tmp_path / "x.h5", x, n_steps=LENS, valid=MASK, text=["a"] * 4, scores=np.ones(4), deep=h5py.SoftLink("/n_steps")
    ) as source:
        (note,) = read_valid_steps(None, None, source).notes
        assert "there is /n_steps (4,) int64, /valid (4, 200) bool: --lens FILE::/dataset takes it" in note
        assert read_valid_steps("none", None, source).notes == ()
    with open_with(tmp_path / "x.h5", x, lengths=LENS, mask=MASK) as source:
        (note,) = read_valid_steps(None, None, source).notes
        assert note.endswith("x.h5::/lengths is used, and not /mask, which lies beside it; --lens FILE::/mask takes that")
    with open_with(tmp_path / "x.h5", x) as source:
        assert read_valid_steps(None, None, source).notes == ()


FRONT = "if padding stands in front, give --padding pre"


def padded_in_front(lengths, garbage=0.0):
    x = np.random.default_rng(0).normal(size=(len(lengths), 9, 3))
    for row, length in zip(x, lengths, strict=True):
        row[: 9 - length] = garbage
    return x


@pytest.mark.parametrize("form", ["npy", "fortran", "h5"])
def test_padding_that_seems_to_stand_in_front(form, tmp_path):
    lens, x = np.arange(20) % 10, padded_in_front(np.arange(20) % 10)
    turned = np.asfortranarray(x) if form == "fortran" else x
    spec = save_h5(tmp_path / "x", x, chunks=(3, 4, 2)) if form == "h5" else save_npy(tmp_path / "x.npy", turned)
    with closing(open_source(spec)) as source:
        lens_npy = save_npy(tmp_path / "lens.npy", lens)
        (note,) = read_valid_steps(lens_npy, None, source).notes
        assert note.startswith(source.name)
        assert note.endswith(FRONT)
        for padding in ("pre", "post"):
            assert read_valid_steps(lens_npy, padding, source).notes == ()
        assert read_valid_steps("none", None, source).notes == ()


@pytest.mark.parametrize(
    "x",
    [
        padded_in_front([3, 5, 9])[:, ::-1],  # padded behind
        padded_in_front([3, 5, 9], garbage=1e-9),
        np.zeros((3, 9, 3)),
        np.where(np.arange(9)[:, None] < 5, 0, np.full((3, 9, 3), np.nan)),  # first steps of zeros, NaN for padding
    ],
    ids=["behind", "not zero", "zeros", "NaN"],
)
def test_padding_that_does_not_seem_to_stand_in_front(x, tmp_path):
    with closing(open_source(save_npy(tmp_path / "x.npy", x))) as source:
        assert read_valid_steps(save_npy(tmp_path / "lens.npy", [3, 5, 9]), None, source).notes == ()


def test_padding_that_cannot_be_read(tmp_path):
    """It was never written, and nobody but the guess about its place has asked for it."""
    with h5py.File(tmp_path / "x.h5", "w") as f:
        f.create_dataset("x", (3, 9, 3), "f4", chunks=(1, 3, 3))
        f["x"][:, :3] = 0
    with closing(open_source(str(tmp_path / "x.h5"))) as source:
        assert read_valid_steps(save_npy(tmp_path / "lens.npy", [3, 2, 1]), None, source).notes == ()
