"""Tables of TensorFlow that are none; whole ones, and all damage to them, are in test_tensorflow and test_damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from lstmcli.errors import DataError
from lstmcli.weights.load import TABLE_MAGIC, Choices, load_weights


@pytest.mark.parametrize(("size", "words"), [(20, "20 bytes"), (47, "47 bytes"), (48, "checksum")])
def test_hardly_more_than_how_a_table_ends(size: int, words: str, tmp_path: Path) -> None:
    path = tmp_path / "model.index"
    path.write_bytes(TABLE_MAGIC.rjust(size, b"\0"))
    with pytest.raises(DataError, match=rf"model\.index.*{words}"):
        load_weights(str(path), Choices())
