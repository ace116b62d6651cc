"""Arrays of an NPZ as inputs: stored ones in place, deflated ones in memory; and every NPZ that does not say what to read."""

import numpy as np
import pytest
from helpers.sources import padded, read

from lstmcli.errors import DataError
from lstmcli.files import zip_reader
from lstmcli.inputs.open_input import open_source
from lstmcli.inputs.valid_steps import read_valid_steps

LENGTHS = np.array([3, 0, 5, 1])
X = padded(LENGTHS, 5, 4)
VALID = np.concatenate([row[:length] for row, length in zip(X, LENGTHS, strict=True)])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("name", ["", "::x"])
def test_an_array_of_an_npz_with_the_lengths_beside_it(save, order, name, tmp_path):
    save(tmp_path / "d.npz", ids=np.arange(4), x=np.asarray(X, order=order), lens=LENGTHS, other=np.array([{}], object))
    source = open_source(f"{tmp_path}/d.npz{name}")
    assert read_valid_steps(None, None, source).valid.lengths.tolist() == LENGTHS.tolist()
    assert read_valid_steps(f"{tmp_path}/d.npz", None, source).origin.endswith("d.npz::lens")
    assert read_valid_steps("none", None, source).valid.lengths.tolist() == [5] * 4
    np.testing.assert_array_equal(read(source, 0, 0, LENGTHS), VALID)
    np.testing.assert_array_equal(read(source, 2, 1, [4, 0]), X[2, 1:5])
    source.finish()
    source.close()


def test_other_members_have_another_identity(tmp_path):
    np.savez(tmp_path / "d.npz", x=X, y=X + 1)
    assert open_source(f"{tmp_path}/d.npz::x").identity() != open_source(f"{tmp_path}/d.npz::y").identity()


def test_a_large_deflated_array_is_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "d.npz", x=np.zeros((10, 10, 10)))
    monkeypatch.setattr(zip_reader, "MEMORY", 8127)
    with pytest.raises(DataError, match=r"d.npz::x: is compressed, and 8,128 bytes .* of the NPZ with np.save"):
        open_source(f"{tmp_path}/d.npz::x")


def test_an_npz_that_does_not_say_what_to_read(tmp_path):
    np.savez(tmp_path / "d.npz", x=X, y=X, z=np.arange(3))
    with pytest.raises(DataError, match=r"one float array of rank 3, .* with 2: x \(4, 5, 4\) float32, y .*::NAME"):
        open_source(f"{tmp_path}/d.npz")
    with pytest.raises(DataError, match=r"d.npz: no array w; there is x, y, z"):
        open_source(f"{tmp_path}/d.npz::w")
    with pytest.raises(DataError, match="expected an NPZ with an array lengths, lens"):
        read_valid_steps(f"{tmp_path}/d.npz", None, open_source(f"{tmp_path}/d.npz::x"))


def test_a_damaged_npz_is_refused(tmp_path):
    """Cut, or with one byte changed in the data that are decoded."""
    np.savez_compressed(tmp_path / "d.npz", x=np.random.default_rng(0).normal(size=(3, 4, 5)))
    content = (tmp_path / "d.npz").read_bytes()
    for bad in (content[:-30], content[:200] + bytes([content[200] ^ 255]) + content[201:]):
        (tmp_path / "bad.npz").write_bytes(bad)
        with pytest.raises(DataError, match="damaged ZIP archive"):
            open_source(f"{tmp_path}/bad.npz::x")
