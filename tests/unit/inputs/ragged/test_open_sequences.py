"""Ragged inputs: every form gives the rows of the padded one, and every one that does not add up is refused."""

from contextlib import closing
from itertools import pairwise

import h5py
import numpy as np
import pytest
from helpers.sources import FLOATS, padded, read

from lstmcli.errors import DataError, UsageError
from lstmcli.inputs.ragged.datasets import in_order
from lstmcli.inputs.ragged.open_sequences import open_sequences
from lstmcli.inputs.valid_steps import read_valid_steps

LENGTHS = np.array([3, 0, 5, 1, 0, 2, 4, 5, 1, 1, 2, 3])
OFFSETS = np.r_[0, np.cumsum(LENGTHS)]
X = padded(LENGTHS, 5, 4)
FLAT = np.concatenate([row[:length] for row, length in zip(X, LENGTHS, strict=True)])


def npy(folder, x, **options):
    np.save(folder / "flat.npy", x)
    return f"{folder}/flat.npy"


def fortran(folder, x, **options):
    return npy(folder, np.asfortranarray(x))


def npz(folder, x, **options):
    np.savez_compressed(folder / "flat.npz", flat=x)
    return f"{folder}/flat.npz::flat"


def h5(folder, x, **options):
    with h5py.File(folder / "flat.h5", "w") as file:
        file.create_dataset("flat", data=x, **options)
    return f"{folder}/flat.h5"


def chunked(folder, x):
    return h5(folder, x, chunks=(4, 3), compression="gzip")


def saved(folder, name, values):
    np.save(folder / name, values)
    return f"{folder}/{name}"


def datasets(path, sequences, place="{}", **options):
    with h5py.File(path, "w") as file:
        for k, sequence in enumerate(sequences):
            file.create_dataset(place.format(k), data=sequence, **options)
    return str(path)


def check(source):
    """The source has the sequences of X, read as a whole, in part and in pieces of time."""
    assert source.shape == X.shape
    valid = read_valid_steps(None, None, source).valid
    assert valid.lengths.tolist() == LENGTHS.tolist()
    assert not valid.starts.any()
    np.testing.assert_array_equal(read(source, 0, 0, LENGTHS), FLAT.astype(np.float32))
    np.testing.assert_array_equal(
        read(source, 5, 1, LENGTHS[5:8] - 1), np.concatenate([X[5 + k, 1:n] for k, n in enumerate((2, 4, 5))])
    )
    np.testing.assert_array_equal(read(source, 1, [0, 2, 0], [0, 3, 0]), X[2, 2:5])
    source.finish()
    source.close()


@pytest.mark.parametrize("write", [npy, fortran, npz, h5, chunked])
def test_a_flat_array(write, tmp_path):
    flat = write(tmp_path, FLAT)
    offsets, lens = saved(tmp_path, "o.npy", OFFSETS), saved(tmp_path, "l.npy", LENGTHS)
    starts = saved(tmp_path, "s.npy", OFFSETS[:-1])
    for how in ({"offsets": offsets}, {"lens": lens}, {"lens": lens, "offsets": offsets}, {"lens": lens, "offsets": starts}):
        check(open_sequences(flat, **how))


def test_a_chunk_of_a_flat_array_counts_as_memory(tmp_path):
    offsets = saved(tmp_path, "o.npy", OFFSETS)
    assert open_sequences(chunked(tmp_path, FLAT), offsets=offsets).decoded_at_once == 4 * 3
    assert open_sequences(h5(tmp_path, FLAT), offsets=offsets).decoded_at_once == 0


def test_starts_may_leave_rows_out_and_go_back(tmp_path):
    lens, starts = saved(tmp_path, "l.npy", [2, 0, 3]), saved(tmp_path, "s.npy", [7, 1, 0])
    source = open_sequences(npy(tmp_path, FLAT), lens=lens, offsets=starts)
    np.testing.assert_array_equal(read(source, 0, 0, [2, 0, 3]), FLAT[[7, 8, 0, 1, 2]])
    assert (
        source.identity()
        != open_sequences(npy(tmp_path, FLAT), lens=lens, offsets=saved(tmp_path, "s.npy", [7, 2, 1])).identity()
    )


@pytest.mark.parametrize("name", ["", "::/flat"])
@pytest.mark.parametrize(
    "beside",
    [{"offsets": OFFSETS}, {"lengths": LENGTHS}, {"idptr": OFFSETS[1:]}, {"offsets": OFFSETS[:-1], "lens": LENGTHS}],
    ids=lambda beside: " ".join(beside),
)
def test_what_says_it_lies_beside_a_flat_dataset(beside, name, tmp_path):
    path = h5(tmp_path, FLAT)
    with h5py.File(path, "a") as file:
        for key, value in beside.items():
            file[key] = value
    check(open_sequences(path + name))


def test_offsets_as_text_and_in_hdf5(tmp_path):
    flat = npy(tmp_path, FLAT)
    (tmp_path / "o.txt").write_text("\n".join(map(str, OFFSETS)))
    check(open_sequences(flat, offsets=f"{tmp_path}/o.txt"))
    with h5py.File(tmp_path / "o.h5", "w") as file:
        file["offsets"], file["n/lens"] = OFFSETS, LENGTHS
    check(open_sequences(flat, offsets=f"{tmp_path}/o.h5"))
    check(open_sequences(flat, lens=f"{tmp_path}/o.h5::/n/lens"))


@pytest.mark.parametrize("name", ["", "::flat"])
@pytest.mark.parametrize("beside", [{"offsets": OFFSETS}, {"seq_len": LENGTHS}, {"offsets": OFFSETS[:-1], "lengths": LENGTHS}])
def test_what_says_it_lies_beside_a_flat_array_of_an_npz(beside, name, tmp_path):
    ids = np.array([f"P{k}" for k in range(len(LENGTHS))])
    np.savez(tmp_path / "flat.npz", flat=FLAT, ids=ids, **beside)
    source = open_sequences(f"{tmp_path}/flat.npz{name}")
    assert source.ids == ids.tolist()
    check(source)


def test_token_ids_of_an_npz_are_divided_by_what_lies_beside_them(tmp_path):
    np.savez(tmp_path / "flat.npz", sequences=np.arange(len(FLAT)), offsets=OFFSETS)
    with closing(open_sequences(f"{tmp_path}/flat.npz", token_ids=True)) as source:
        assert source.lengths.tolist() == LENGTHS.tolist()


def test_several_arrays_of_an_npz_are_sequences_whatever_lies_beside_them(tmp_path):
    np.savez(tmp_path / "two.npz", a=FLAT, b=FLAT[:3], lengths=[1, 2])
    with closing(open_sequences(f"{tmp_path}/two.npz")) as source:
        assert source.ids == ["a", "b"]


@pytest.mark.parametrize("name", ["lengths", "sequence_length"])
def test_lengths_in_an_npz_are_found_by_their_name(name, tmp_path):
    np.savez(tmp_path / "lens.npz", other=np.zeros(2), **{name: LENGTHS})
    check(open_sequences(npy(tmp_path, FLAT), lens=f"{tmp_path}/lens.npz"))
    check(open_sequences(npy(tmp_path, FLAT), lens=f"{tmp_path}/lens.npz", offsets=saved(tmp_path, "starts.npy", OFFSETS[:-1])))
    np.savez(tmp_path / "others.npz", other=LENGTHS)
    with pytest.raises(DataError, match=r"expected an NPZ with an array lengths, lens, .*; name another: FILE::NAME"):
        open_sequences(npy(tmp_path, FLAT), lens=f"{tmp_path}/others.npz")


@pytest.mark.parametrize("options", [{}, {"compression": "gzip"}], ids=["contiguous", "gzip"])
@pytest.mark.parametrize("place", ["{}", "group/{}", "{}/emb"])
@pytest.mark.parametrize("dtype", ["<f4", ">f8"])
def test_a_dataset_for_each_sequence(options, place, dtype, tmp_path):
    """An empty one cannot be chunked, so that contiguous and decoded ones stand side by side."""
    sequences = [X[s, :length].astype(dtype) for s, length in enumerate(LENGTHS)]
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["labels"] = np.arange(3)
        for k, sequence in enumerate(sequences):
            file.create_dataset(place.format(k), data=sequence, **(options if len(sequence) else {}))
    for spec in ["s.h5"] + ["s.h5::/group"] * place.startswith("group"):
        check(open_sequences(f"{tmp_path}/{spec}"))


def test_groups_with_several_names_are_gone_through_once(tmp_path):
    with h5py.File(tmp_path / "s.h5", "w") as file:
        group = file
        for _ in range(40):
            group["b"] = group.create_group("a")
            group = group["a"]
        group["x"], file["root"] = FLAT, file["/"]
    assert list(open_sequences(f"{tmp_path}/s.h5").ids) == ["a/" * 40 + "x"]


def test_a_rank_1_dataset_is_one_step(tmp_path):
    sequences = [X[s, 0] if length == 1 else X[s, :length] for s, length in enumerate(LENGTHS)]
    check(open_sequences(datasets(tmp_path / "s.h5", sequences)))


@pytest.mark.parametrize("dtype", FLOATS)
def test_floats_are_converted(dtype, tmp_path):
    wanted = FLAT.astype(dtype).astype(np.float32)
    source = open_sequences(npy(tmp_path, FLAT.astype(dtype)), offsets=saved(tmp_path, "o.npy", OFFSETS))
    np.testing.assert_array_equal(read(source, 0, 0, LENGTHS), wanted)
    source = open_sequences(datasets(tmp_path / "s.h5", [FLAT[a:b].astype(dtype) for a, b in pairwise(OFFSETS)]))
    np.testing.assert_array_equal(read(source, 0, 0, LENGTHS), wanted)


def test_the_order_of_names():
    assert in_order(["0", "1", "10", "2"]) == ["0", "1", "2", "10"]
    assert in_order(["a", "b10", "b2"]) == ["a", "b10", "b2"]
    assert in_order(["0/x", "10/10", "10/9", "2/x"]) == ["0/x", "2/x", "10/9", "10/10"]


BAD_OFFSETS = {
    "back": ([0, 5, 4, 27], "row 2: expected offsets that never go back, got 4 after 5"),
    "beyond": ([0, 5, 28], "expected offsets from 0 to the 27 rows of .*flat.npy, got 0 to 28"),
    "too early": ([0, 5, 26], "got 0 to 26; starts alone need --lens"),
    "late": ([1, 27], "got 1 to 27"),
    "none": (np.empty(0, np.int64), "one more than there are sequences, got none"),
    "negative": ([-1, 27], "row 0: expected a whole number from 0 on, got -1"),
    "a fraction": ([0, 0.5, 27], "row 1: expected a whole number from 0 on, got 0.5"),
    "NaN": ([0, np.nan, 27], "row 1: expected a whole number from 0 on, got nan"),
    "rank 2": ([[0, 1], [2, 27]], r"expected one number for each sequence, got shape \(2, 2\)"),
    "texts": (["0", "27"], "expected whole numbers, got <U2"),
}


@pytest.mark.parametrize("what", BAD_OFFSETS)
def test_bad_offsets(what, tmp_path):
    values, words = BAD_OFFSETS[what]
    with pytest.raises(DataError, match=words):
        open_sequences(npy(tmp_path, FLAT), offsets=saved(tmp_path, "o.npy", values))


def test_bad_lengths(tmp_path):
    flat, lens = npy(tmp_path, FLAT), saved(tmp_path, "l.npy", [3, 4])
    with pytest.raises(DataError, match=r"got \(27, 4\); the lengths of .*l.npy add up to 7"):
        open_sequences(flat, lens=lens)
    with pytest.raises(DataError, match="row 1: the sequence from 24 on with 4 steps goes beyond row 27"):
        open_sequences(flat, lens=lens, offsets=saved(tmp_path, "s.npy", [0, 24]))
    with pytest.raises(DataError, match="row 0: the sequence from 0 on with 3 steps goes beyond row 2"):
        open_sequences(flat, lens=lens, offsets=saved(tmp_path, "s.npy", [0, 2, 27]))
    with pytest.raises(DataError, match="row 1: the sequence from 2 on has steps of that in row 0, from 0 on"):
        open_sequences(flat, lens=lens, offsets=saved(tmp_path, "s.npy", [0, 2]))
    with pytest.raises(DataError, match="row 1: the sequence from 2 on has steps of that in row 0, from 5 on"):
        open_sequences(flat, lens=lens, offsets=saved(tmp_path, "s.npy", [5, 2]))
    with pytest.raises(DataError, match="row 0: expected a whole number from 0 on, got 9223372036854775807"):
        open_sequences(flat, lens=lens, offsets=saved(tmp_path, "s.npy", [(1 << 63) - 1, 2]))
    with pytest.raises(DataError, match="expected 2 starts, one for each length, or one more, got 4"):
        open_sequences(flat, lens=lens, offsets=saved(tmp_path, "s.npy", [0, 2, 3, 4]))


def test_lengths_that_only_seem_to_add_up(tmp_path):
    flat, text = npy(tmp_path, FLAT), tmp_path / "l.txt"
    text.write_text("20\n-3\n10\n")
    with pytest.raises(DataError, match=r"l.txt, row 1: expected a whole number from 0 on, got -3"):
        open_sequences(flat, lens=str(text))
    text.write_text("-3\n2\n")
    with pytest.raises(DataError, match=r"l.txt, row 0: expected a whole number from 0 on, got -3"):
        open_sequences(flat, lens=saved(tmp_path, "l.npy", [3, 2]), offsets=str(text))
    lengths = np.full((1 << 16) + 1, (1 << 48) - 1)
    lengths[-1] = (1 << 16) + 27  # their sum is 27 modulo 2^64
    with pytest.raises(DataError, match=f"add up to {(1 << 64) + 27}"):
        open_sequences(flat, lens=saved(tmp_path, "l.npy", lengths))


def test_bad_datasets(tmp_path):
    good = np.zeros((2, 4), np.float32)
    for bad in (np.zeros((2, 5), np.float32), np.zeros(3, np.float32), np.zeros((2, 2, 4), np.float32), good.astype("f16")):
        path = datasets(tmp_path / "s.h5", [good, bad], "g/{}")
        with pytest.raises(DataError, match=r"/g|float64"):
            open_sequences(f"{path}::/g")
    with h5py.File(path, "w") as file:
        file["g/0"], file["g/1"] = good, h5py.SoftLink("/g/0")
    with pytest.raises(DataError, match="/g/1: is a soft or external link"):
        open_sequences(f"{path}::/g")
    with h5py.File(path, "w") as file:
        file["g/0"] = good
        file.create_dataset("g/1", (2, 4), "f4")
    with pytest.raises(DataError, match="/g/1: was never written"):
        open_sequences(f"{path}::/g")


def test_options_that_do_not_go_with_it(tmp_path):
    np.save(tmp_path / "x.npy", X)
    flat, offsets = npy(tmp_path, FLAT), saved(tmp_path, "o.npy", OFFSETS)
    many = datasets(tmp_path / "s.h5", [FLAT, FLAT])
    with pytest.raises(UsageError, match=r"expected a flat input"):
        open_sequences(f"{tmp_path}/x.npy", offsets=offsets)
    with pytest.raises(UsageError, match=r"expected a flat input"):
        open_sequences(many, offsets=offsets)
    with pytest.raises(DataError, match=r"o.npy: expected 2 lengths, those of .*s.h5::/, got 13"):
        open_sequences(many, lens=offsets)
    with pytest.raises(DataError, match=r"l.npy, row 1: expected 27, the steps of sequence 1 \(1\) in .*, got 26"):
        open_sequences(many, lens=saved(tmp_path, "l.npy", [27, 26]))
    assert open_sequences(many, lens=saved(tmp_path, "l.npy", [27, 27])).shape == (2, 27, 4)
    with pytest.raises(UsageError, match=r"--axes TNE: .* is ragged"):
        open_sequences(flat, offsets=offsets, axes="TNE")
    with pytest.raises(UsageError, match=r"--padding pre: .* is ragged"):
        read_valid_steps(None, "pre", open_sequences(flat, offsets=offsets))


def test_a_lone_array_of_rank_2_is_one_sequence(tmp_path):
    """A note says so, as nothing divides it; in a group that is named it is meant so."""
    for spec in (npy(tmp_path, FLAT), h5(tmp_path, FLAT), f"{h5(tmp_path, FLAT)}::/flat"):
        source = open_sequences(spec)
        assert source.shape == (1, 27, 4)
        assert "(27, 4) is taken as one sequence" in source.notes[0]
        np.testing.assert_array_equal(read(source, 0, 3, [20]), FLAT[3:23].astype(np.float32))
    source = open_sequences(f"{datasets(tmp_path / 's.h5', [FLAT], 'g/{}')}::/g")
    assert (source.shape, source.notes) == ((1, 27, 4), ())


def test_a_result_stands_for_its_outputs_and_a_model_file_for_nothing(tmp_path):
    """A model of one size has kernels and biases of one width, which could be sequences."""
    for form in ("lstmcli-result", "lstmcli-model", "another"):
        with h5py.File(tmp_path / f"{form}.h5", "w") as file:
            file.attrs["format"] = form
            file["outputs"], file["offsets"] = FLAT, OFFSETS
            file["state/0/h"] = np.zeros((len(LENGTHS), FLAT.shape[1]), np.float32)
    source = open_sequences(f"{tmp_path}/lstmcli-result.h5")
    assert source.name == f"{tmp_path}/lstmcli-result.h5::/outputs"
    check(source)
    with pytest.raises(DataError, match="is a model file, for --weights; expected sequences"):
        open_sequences(f"{tmp_path}/lstmcli-model.h5")
    assert open_sequences(f"{tmp_path}/another.h5").shape[0] == 2


def test_offsets_and_lengths_that_are_links(tmp_path):
    with h5py.File(tmp_path / "links.h5", "w") as file:
        file["there"], file["lengths there"] = OFFSETS, LENGTHS
        file["offsets"], file["n"] = h5py.SoftLink("/there"), h5py.SoftLink("/lengths there")
    flat = npy(tmp_path, FLAT)
    for told in ({"offsets": f"{tmp_path}/links.h5"}, {"lens": f"{tmp_path}/links.h5::/n"}):
        check(open_sequences(flat, follow_links=True, **told))
        with pytest.raises(DataError, match=r"is a soft or external link, .* --follow-links"):
            open_sequences(flat, **told)


def test_a_flat_array_that_lies_in_other_files(tmp_path):
    """As merge --virtual makes it; links are followed where that is allowed."""
    layout = h5py.VirtualLayout(FLAT.shape, FLAT.dtype)
    for k, rows in enumerate((slice(0, 10), slice(10, None))):
        with h5py.File(tmp_path / f"{k}.h5", "w") as file:
            file["rows"] = FLAT[rows]
        layout[rows] = h5py.VirtualSource(f"{k}.h5", "rows", FLAT[rows].shape)
    with h5py.File(tmp_path / "whole.h5", "w") as file:
        file.create_virtual_dataset("outputs", layout)
        file["offsets"] = OFFSETS
    for spec in (f"{tmp_path}/whole.h5", f"{tmp_path}/whole.h5::/outputs"):
        check(open_sequences(spec, follow_links=True))
        with pytest.raises(DataError, match=r"its data lies in other files, which are not read; .* --follow-links"):
            open_sequences(spec)
    (tmp_path / "1.h5").unlink()
    with pytest.raises(DataError, match=r"1\.h5 holds part of it, but is missing"):
        open_sequences(f"{tmp_path}/whole.h5", follow_links=True)


@pytest.mark.parametrize("stored", [np.float16, np.float32, np.float64])
def test_a_long_sequence_that_lies_behind_short_ones_which_follow_it(stored, tmp_path):
    """It is converted in the memory that the short ones were read into with the one before."""
    rng = np.random.default_rng(0)
    sequences = [rng.normal(size=(steps, 8)).astype(stored) for steps in (2, 10_000 // (8 * stored().itemsize), 3, 1)]
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for number in (0, 2, 3, 1):
            file[str(number)] = sequences[number]
    source = open_sequences(f"{tmp_path}/x.h5")
    for dtype in (np.float32, np.float64):
        rows = read(source, 0, 0, source.lengths, dtype)
        np.testing.assert_array_equal(rows, np.concatenate(sequences).astype(dtype))
