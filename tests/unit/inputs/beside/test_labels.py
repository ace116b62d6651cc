"""Names of classes."""

import pytest

from lstmcli.errors import DataError
from lstmcli.inputs.beside.labels import read_labels


def test_lines_end_where_text_files_end_them(tmp_path):
    (tmp_path / "names.txt").write_bytes("\ufeffone\u2028still one\r\ntwo\x0b\x0c\x85\n\nfour".encode())
    assert read_labels(f"{tmp_path}/names.txt") == ("one\u2028still one", "two\x0b\x0c\x85", "", "four")


def test_no_text(tmp_path):
    (tmp_path / "names.txt").write_bytes(b"one\n\xff\n")
    with pytest.raises(DataError, match=r"names.txt: expected a text .* in UTF-8"):
        read_labels(f"{tmp_path}/names.txt")
