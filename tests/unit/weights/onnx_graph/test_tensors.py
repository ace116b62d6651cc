"""ONNX's data in other files: beside the model, behind links, and never anywhere else."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import naive
from helpers import weight_files as wf
from helpers.command import assert_one_line, lstmcli
from helpers.onnx_files import lstm
from helpers.weight_imports import assert_same, refusal, tree

CELL = wf.random_cell(3, 4, 0)


def external(tmp_path: Path, location: str, data: bytes | None = None, **entries: object) -> Path:
    """A model in tmp_path/model/ whose W lies at `location`."""
    kernel = wf.onnx_weights([CELL])["W"]
    node, tensors = lstm(0, [CELL])
    pairs = {"location": location, **{key: str(value) for key, value in entries.items()}}
    outside = b"".join(wf.field(13, wf.field(1, key) + wf.field(2, value)) for key, value in pairs.items())
    tensor = (
        b"".join(wf.field(1, size) for size in kernel.shape) + wf.field(2, 1) + wf.field(8, "W0") + outside + wf.field(14, 1)
    )
    (tmp_path / "model").mkdir(exist_ok=True)
    for folder in (tmp_path, tmp_path / "model"):
        (folder / "w.bin").write_bytes(b"\xff" * 8 + kernel.tobytes() if data is None else data)
    return wf.write_onnx(tmp_path / "model" / "m.onnx", [node], [tensor, *tensors[1:]])


def test_external_data_in_the_same_folder(tmp_path: Path) -> None:
    assert_same(tree(external(tmp_path, "w.bin", offset=8, length=192)), naive.Stack((CELL,)))
    assert_same(tree(external(tmp_path, "./w.bin", offset=8)), naive.Stack((CELL,)))


@pytest.mark.parametrize(
    "location", ["../w.bin", "sub/../../w.bin", "/etc/passwd", "", "link.bin", "linked/w.bin", "../model/../w.bin"]
)
def test_external_data_elsewhere_is_refused_by_name(location: str, tmp_path: Path) -> None:
    path = external(tmp_path, location, offset=8)
    (path.parent / "link.bin").symlink_to("../w.bin")
    (path.parent / "linked").symlink_to("..")
    assert "outside of the model's folder" in refusal(path)
    assert_one_line(lstmcli("model", "show", path, cwd=tmp_path), 65, "m.onnx", "W0", location)


def test_external_data_that_lies(tmp_path: Path) -> None:
    assert "192" in refusal(external(tmp_path, "w.bin", offset=9))
    assert "191" in refusal(external(tmp_path, "w.bin", offset=8, length=191))
    assert "damaged" in refusal(external(tmp_path, "w.bin", offset="x"))
    refusal(external(tmp_path, "w.bin", offset=-8))
    assert "plain file" in refusal(external(tmp_path, "."))
    refusal(external(tmp_path, "missing.bin"), 66)


def test_external_data_where_the_model_s_link_leads(tmp_path: Path) -> None:
    path = external(tmp_path, "w.bin", offset=8)
    for folder in ("snapshot", "elsewhere"):
        (tmp_path / folder).mkdir()
    (blobs := tmp_path / "blobs").mkdir()
    path.rename(blobs / "a1")
    (path.parent / "w.bin").rename(blobs / "b2")
    for name, target in (("m.onnx", "a1"), ("w.bin", "b2")):
        (tmp_path / "snapshot" / name).symlink_to(f"../blobs/{target}")
    assert_same(tree(tmp_path / "snapshot" / "m.onnx"), naive.Stack((CELL,)))
    (blobs / "w.bin").symlink_to("b2")
    (tmp_path / "elsewhere" / "m.onnx").symlink_to("../blobs/a1")  # a link to the model alone
    assert_same(tree(tmp_path / "elsewhere" / "m.onnx"), naive.Stack((CELL,)))
    (tmp_path / "elsewhere" / "w.bin").symlink_to("../w.bin")  # and one that leads to neither folder
    assert "outside of the model's folder" in refusal(tmp_path / "elsewhere" / "m.onnx")
