"""Trained models as their frameworks wrote them: the same outputs, the same states, the same accuracy on real speech."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import files, golden, speech
from helpers.command import shell, succeed

TOLERANCE = 2e-6


def check(name: str, outputs: np.ndarray, state: files.Arrays) -> None:
    want = speech.expected(name)
    assert golden.relative_error(outputs[want["rows"]], want["outputs"]) <= TOLERANCE
    for path in speech.PATHS[name].values():
        assert golden.relative_error(state[path][want["rows"]], want[path]) <= TOLERANCE, path
    logits = speech.logits(name, state)
    assert golden.relative_error(logits, want["logits"]) <= 2 * TOLERANCE
    assert np.mean(logits.argmax(axis=1) == speech.utterances()[2]) == pytest.approx(want["accuracy"], abs=1e-7)


def run(path: Path, folder: Path, *options: object) -> tuple[np.ndarray, files.Arrays]:
    succeed("run", "--input", speech.SAMPLE_DATA / "vowels.h5", "--weights", path, *options, "--output", "out.h5", cwd=folder)
    outputs, state = files.read_result(folder / "out.h5")
    assert outputs is not None
    return outputs, state


@pytest.mark.parametrize("path", speech.MODELS, ids=lambda path: path.name)
def test_the_command_computes_what_the_framework_does(path: Path, tmp_path: Path) -> None:
    name, options = speech.MODELS[path]
    check(name, *run(path, tmp_path, *options))


def test_a_run_from_the_imported_model_has_the_same_bits(tmp_path: Path) -> None:
    direct = run(speech.CHECKPOINT, tmp_path, *speech.CHECKPOINT_OPTIONS)
    succeed("model", "import", speech.CHECKPOINT, "-o", "model.h5", *speech.CHECKPOINT_OPTIONS, cwd=tmp_path)
    (tmp_path / "out.h5").unlink()
    files.assert_same_bits(run(tmp_path / "model.h5", tmp_path), direct)


def test_keras_weights_without_a_configuration(tmp_path: Path) -> None:
    check("keras_stack", *run(speech.keras_weights(tmp_path), tmp_path))


@pytest.mark.parametrize("path", speech.MODELS, ids=lambda path: path.name)
def test_nothing_of_any_framework_is_imported(path: Path, tmp_path: Path) -> None:
    code = f"""
import sys
import lstmcli
lstmcli.load_model({str(path)!r})
from lstmcli.weights import keras, onnx, pytorch, tensorflow
from lstmcli.weights.containers import safetensors
from lstmcli.weights.torch_format import saved_files
print(sorted({{"torch", "tensorflow", "keras", "onnx", "onnxruntime", "safetensors", "google"}} & set(sys.modules)))
"""
    ran = shell(f'"{sys.executable}" -c "$1"', tmp_path, code)
    assert (ran.code, ran.text) == (0, "[]\n"), ran.err


def test_mapping_names_each_tensor_and_what_was_left_out(tmp_path: Path) -> None:
    text = succeed("model", "import", speech.CHECKPOINT, "-o", "model.h5", cwd=tmp_path).text
    kernel = "rnn/multi_rnn_cell/cell_0/lstm_cell/kernel (36, 192)"
    for line in (
        f"{kernel} -> 0 input_kernel",
        f"{kernel} -> 0 recurrent_kernel",
        "head/kernel (32, 9)",
        "tensors of an optimizer, such as beta1_power ()",
    ):
        assert line in text
    assert "head/kernel/Adam (32, 9)" not in text
    assert text.index("left out") < text.index("head/kernel (32, 9)")
    assert "forget_bias 1.0" in text


@pytest.mark.parametrize("name", ["tf1_stack.ckpt", "tf1_stack.ckpt.index", "tf1_stack.ckpt.data-00000-of-00001"])
def test_a_checkpoint_by_any_of_its_names(name: str, tmp_path: Path) -> None:
    assert "48" in succeed("model", "show", speech.FOLDER / name, cwd=tmp_path).text


def test_show_draws_the_tree_and_says_what_it_assumed(tmp_path: Path) -> None:
    ran = succeed("model", "show", speech.CHECKPOINT, "--forget-bias", 0.5, cwd=tmp_path)
    assert "forget_bias 0.5" in ran.text
    assert "projection (48, 24)" in ran.text
    assert "forget_bias" not in ran.err
    assert "forget_bias 1.0 is assumed" in succeed("model", "show", speech.CHECKPOINT, cwd=tmp_path).err


def test_file_names_do_not_matter(tmp_path: Path) -> None:
    for k, path in enumerate(path for path in speech.MODELS if path != speech.CHECKPOINT):
        (tmp_path / f"{k}.bin").write_bytes(path.read_bytes())
        succeed("model", "show", f"{k}.bin", cwd=tmp_path)
