"""PyTorch: names under any prefix, both containers, what is refused, and the way back."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import files, naive
from helpers import weight_files as wf
from helpers.command import assert_one_line, lstmcli, succeed
from helpers.weight_imports import assert_same, load, refusal, tree

STACK = naive.Stack((wf.random_cell(3, 5, 0), wf.random_cell(5, 5, 1)))
BOTH = naive.Stack(
    (
        naive.Bidirectional(wf.random_cell(3, 4, 0), wf.random_cell(3, 4, 1)),
        naive.Bidirectional(wf.random_cell(8, 4, 2), wf.random_cell(8, 4, 3)),
    )
)
PROJECTED = naive.Stack(
    (
        naive.Bidirectional(wf.random_cell(3, 5, 0, projection=2), wf.random_cell(3, 5, 1, projection=2)),
        naive.Bidirectional(wf.random_cell(4, 5, 2, projection=2), wf.random_cell(4, 5, 3, projection=2)),
    )
)
SQUARE = naive.Stack((wf.random_cell(4, 4, 0), wf.random_cell(4, 4, 1)))  # in which a missing transposition has the right shape
UNBIASED = naive.Stack((wf.random_cell(3, 5, 0, bias=False),))
MODELS = {"stack": STACK, "bidirectional": BOTH, "projection": PROJECTED, "square": SQUARE, "no bias": UNBIASED}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("prefix", ["", "lstm.", "module.encoder.lstm."])
def test_parameters_by_their_names(name: str, prefix: str, tmp_path: Path) -> None:
    tensors = wf.torch_state_dict(MODELS[name], prefix) | {"head.weight": np.ones((9, 64), np.float32)}
    for path in (wf.write_safetensors(tmp_path / "a", tensors), wf.write_state_dict(tmp_path / "b", tensors)):
        assert_same(tree(path), MODELS[name])
        assert [str(tensor) for tensor in load(path).left_out] == ["head.weight (9, 64)"]


@pytest.mark.parametrize(
    ("name", "beside"),
    [
        ("model-00001-of-00002.safetensors", ""),
        ("pytorch_model-00002-of-00011.bin", ""),
        ("m_00000.weights.h5", "m.weights.json"),
        ("model.safetensors.index.json", ""),
        ("m.weights.json", ""),
    ],
)
def test_one_shard_of_a_model_is_refused(name: str, beside: str, tmp_path: Path) -> None:
    """The upper layer may lie in another one."""
    path = wf.write_safetensors(tmp_path / name, wf.torch_state_dict(naive.Stack(STACK.layers[:1])))
    if beside:
        (tmp_path / beside).touch()
    assert "save one file" in refusal(path)


@pytest.mark.parametrize("name", ["model-00001-of-00001.safetensors", "m_00000.weights.h5"])
def test_a_model_in_one_shard_is_read(name: str, tmp_path: Path) -> None:
    assert_same(tree(wf.write_safetensors(tmp_path / name, wf.torch_state_dict(STACK))), STACK)


def test_mapping_says_where_each_tensor_went(tmp_path: Path) -> None:
    found = load(wf.write_safetensors(tmp_path / "a", wf.torch_state_dict(PROJECTED, "m.")))
    lines = [(mapped.name, mapped.shape, mapped.path, mapped.field) for mapped in found.mapping]
    assert ("m.weight_hr_l1_reverse", (2, 5), "1/backward", "projection") in lines
    assert len(lines) == 4 * 5


def test_one_cell(tmp_path: Path) -> None:
    path = wf.write_safetensors(tmp_path / "a", wf.torch_parameters(STACK.layers[0], ""))  # type: ignore[arg-type]
    assert_same(tree(path), naive.Stack(STACK.layers[:1]))


def test_order_in_the_file_does_not_matter(tmp_path: Path) -> None:
    many = naive.Stack(tuple(wf.random_cell(4, 4, k) for k in range(12)))
    tensors = wf.torch_state_dict(many)
    assert_same(tree(wf.write_safetensors(tmp_path / "a", {name: tensors[name] for name in sorted(tensors)})), many)


@pytest.mark.parametrize("dtype", ["f2", "f8"])
def test_other_precisions_are_kept(dtype: str, tmp_path: Path) -> None:
    tensors = {name: value.astype(dtype) for name, value in wf.torch_state_dict(UNBIASED).items()}
    for path in (wf.write_safetensors(tmp_path / "a", tensors), wf.write_state_dict(tmp_path / "b", tensors)):
        (cell,) = tree(path).layers  # type: ignore[union-attr]
        assert cell.input_kernel.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(cell.input_kernel, tensors["weight_ih_l0"].T)


def test_bfloat16_becomes_float32(tmp_path: Path) -> None:
    exact = {name: value.view("u4") >> 16 << 16 for name, value in wf.torch_state_dict(UNBIASED).items()}
    halves = {name: (value >> 16).astype("u2") for name, value in exact.items()}
    found = load(wf.write_safetensors(tmp_path / "a", halves, **dict.fromkeys(halves, "BF16")))
    (_, cell), *_ = found.model.cells()
    np.testing.assert_array_equal(cell.input_kernel, exact["weight_ih_l0"].view("f4").T)
    assert any("bfloat16" in note for note in found.notes)


def test_numbers_that_are_none_are_said(tmp_path: Path) -> None:
    tensors = wf.torch_state_dict(UNBIASED)
    tensors["weight_hh_l0"] = tensors["weight_hh_l0"].copy()
    tensors["weight_hh_l0"][0, 0] = np.nan
    assert any("finite" in note for note in load(wf.write_safetensors(tmp_path / "a", tensors)).notes)
    tensors |= {"bias_ih_l0": np.full(20, np.inf, "f4"), "bias_hh_l0": np.full(20, -np.inf, "f4")}
    ran = succeed("model", "import", wf.write_safetensors(tmp_path / "a", tensors), "-o", "m.h5", cwd=tmp_path)
    assert "finite" in ran.text
    assert ran.err == ""


def test_several_are_listed_and_one_is_selected(tmp_path: Path) -> None:
    tensors = wf.torch_state_dict(STACK, "encoder.lstm.") | wf.torch_state_dict(BOTH, "decoder.lstm.")
    path = wf.write_safetensors(tmp_path / "a", tensors)
    text = refusal(path)
    for word in ("2 LSTMs", "--select", "encoder.lstm", "decoder.lstm", "(20, 3)", "(16, 3)"):
        assert word in text
    assert_same(tree(path, select="encoder.lstm"), STACK)
    assert_same(tree(path, select="dec"), BOTH)
    assert "begins with 'x'" in refusal(path, select="x")
    assert_one_line(lstmcli("model", "show", path, cwd=tmp_path), 65, "encoder.lstm", "decoder.lstm")
    succeed("model", "show", path, "--select", "enc", cwd=tmp_path)


def test_gru_and_rnn_are_no_lstm(tmp_path: Path) -> None:
    gru = {"gru.weight_ih_l0": np.ones((15, 3), "f4"), "gru.weight_hh_l0": np.ones((15, 5), "f4")}
    assert "gru.weight_ih_l0 (15, 3)" in refusal(wf.write_safetensors(tmp_path / "a", gru))
    assert_same(tree(wf.write_safetensors(tmp_path / "b", gru | wf.torch_state_dict(STACK, "x."))), STACK)


@pytest.mark.parametrize(
    "missing", ["weight_ih_l0", "weight_hh_l1", "bias_hh_l0", "bias_ih_l1_reverse", "weight_ih_l0_reverse"]
)
def test_missing_parameters_are_named(missing: str, tmp_path: Path) -> None:
    tensors = wf.torch_state_dict(BOTH)
    del tensors[missing]
    assert missing in refusal(wf.write_safetensors(tmp_path / "a", tensors))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weight_ih_l0", np.ones((20, 3, 1), "f4")),
        ("weight_ih_l0", np.ones((18, 3), "f4")),
        ("weight_ih_l0", np.ones((20, 3), "i8")),
        ("weight_ih_l1", np.ones((20, 4), "f4")),
        ("bias_ih_l0", np.ones(19, "f4")),
        ("weight_hr_l0", np.ones((2, 4), "f4")),
        ("weight_ih_l3", np.ones((20, 5), "f4")),
    ],
)
def test_parameters_that_do_not_fit(name: str, value: np.ndarray, tmp_path: Path) -> None:
    refusal(wf.write_safetensors(tmp_path / "a", wf.torch_state_dict(STACK) | {name: value}))


def test_options_that_a_file_does_not_need(tmp_path: Path) -> None:
    path = wf.write_safetensors(tmp_path / "a", wf.torch_state_dict(STACK))
    for option in ("--forget-bias", "--projection-clip"):  # nn.LSTM adds none; no layer has a projection
        assert_one_line(lstmcli("model", "import", path, "-o", "m.h5", option, 1, cwd=tmp_path), 2, option)
    for option, value, words in [
        ("--residual", 7, "expected layers from 0 to 1"),
        ("--residual", "all", "expected equal widths"),
        ("--merge", "max", "expected one of concat"),
    ]:
        assert_one_line(lstmcli("model", "import", path, "-o", "m.h5", option, value, cwd=tmp_path), 2, option, words)
    assert_one_line(lstmcli("model", "show", path, "--merge", "sum", cwd=tmp_path), 2, "--merge", "not bidirectional")
    assert_one_line(lstmcli("model", "show", path, "--recurrent-activation", "tanh", cwd=tmp_path), 2, "hard_sigmoid_keras2")
    assert_one_line(lstmcli("model", "show", path, "--activation", "swish", cwd=tmp_path), 2, "--activation", "softplus")
    assert_one_line(lstmcli("model", "show", path, "--cell-clip", "x", cwd=tmp_path), 2, "--cell-clip")


# safetensors.


def header(path: Path, text: bytes, data: bytes = b"\0" * 16, length: int | None = None) -> Path:
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


ENTRY = b'{"weight_ih_l0":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}'
HEADERS = {
    "no JSON": ENTRY[:-1],
    "a list": b'{"a":[1]}',
    "twice": ENTRY[:-1] + b"," + ENTRY[1:],
    "too short for its shape": ENTRY.replace(b"[2,2]", b"[2,3]"),
    "beyond the end": ENTRY.replace(b"[0,16]", b"[4,20]"),
    "negative": ENTRY.replace(b"[0,16]", b"[-16,0]"),
    "a gap": ENTRY.replace(b"[0,16]", b"[8,16]").replace(b"[2,2]", b"[2,1]"),
    "unknown dtype": ENTRY.replace(b"F32", b"F31"),
    "a shape of texts": ENTRY.replace(b"[2,2]", b'["2",2]'),
    "a huge shape": ENTRY.replace(b"[2,2]", b"[4294967296,4294967296]"),
    "deep": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "overlapping": ENTRY[:-1] + b"," + ENTRY[1:].replace(b"ih", b"hh"),
    "no tensors": b"{}",
}


@pytest.mark.parametrize("what", HEADERS)
def test_safetensors_headers_that_lie(what: str, tmp_path: Path) -> None:
    refusal(header(tmp_path / "a", HEADERS[what]))


def test_safetensors_header_longer_than_the_file(tmp_path: Path) -> None:
    refusal(header(tmp_path / "a", ENTRY, length=10**15))


# .pt


def test_views_of_one_storage(tmp_path: Path) -> None:
    """As after flatten_parameters(): offsets into one buffer, and a transposed view."""
    tensors = wf.torch_state_dict(STACK)
    pairs, flat, at = [], b"", 0
    for name, value in tensors.items():
        stored = np.ascontiguousarray(value if name != "weight_hh_l1" else value.T)
        strides = (value.shape[1], 1) if value.ndim == 2 else (1,)
        strides = (1, value.shape[0]) if name == "weight_hh_l1" else strides
        pairs.append((name, value.shape, strides, at))
        flat, at = flat + stored.tobytes(), at + stored.size
    made = [(name, wf.p_tensor("0", at, shape, strides, offset)) for name, shape, strides, offset in pairs]
    assert_same(tree(wf.write_pt(tmp_path / "a", wf.p_dict(made), {"0": flat})), STACK)


def test_a_checkpoint_of_training(tmp_path: Path) -> None:
    """Nested dicts, a Parameter, an optimizer's state under integers, numbers and texts."""
    tensors = wf.torch_state_dict(STACK)
    data = {str(k): value.T.tobytes() if value.ndim == 2 else value.tobytes() for k, value in enumerate(tensors.values())}
    pairs = [(f"lstm.{name}", wf.p_array(str(k), value)) for k, (name, value) in enumerate(tensors.items())]
    name, value = pairs[0]
    parameter = b"ctorch._utils\n_rebuild_parameter\n" + wf.p_tuple(value, b"\x88", b"ccollections\nOrderedDict\n)R") + b"R"
    weights = wf.p_dict([(name, parameter), *pairs[1:]])
    optimizer = b"}(" + wf.p_int(0) + wf.p_array("0", tensors["weight_ih_l0"]) + b"u"
    size = b"ctorch\nSize\n" + wf.p_tuple(wf.p_tuple(wf.p_int(3))) + b"R"
    root = [("epoch", wf.p_int(7)), ("model", weights), ("optimizer", optimizer), ("note", wf.p_text("best")), ("size", size)]
    path = wf.write_pt(tmp_path / "a", wf.p_dict(root), data)
    assert_same(tree(path), STACK)
    assert load(path).mapping[0].name == "model.lstm.weight_ih_l0"


class Evil:
    def __init__(self, *call: object) -> None:
        self.call = call

    def __reduce__(self) -> tuple[object, ...]:
        return self.call


PROTOCOLS = [0, 1, 2, 3, 4, 5]
CALLS = {
    "posix.system": Evil(os.system, ("touch pwned",)),
    "builtins.eval": Evil(eval, ("open('pwned', 'w')",)),
    "builtins.getattr": Evil(getattr, ("a", "upper")),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", CALLS)
def test_nothing_of_a_pickle_is_run(name: str, protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "evil.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"x": CALLS[name]}, protocol))
    before = files.snapshot(tmp_path)
    words = name if protocol >= 3 else name.replace("builtins", "__builtin__")
    assert words in refusal(path)
    assert files.snapshot(tmp_path) == before


def test_a_malicious_file_and_the_command(tmp_path: Path) -> None:
    path = tmp_path / "evil.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Evil(os.system, ("touch pwned",))))
    for args in (
        ["model", "show"],
        ["model", "import", "-o", "m.h5"],
        ["run", "--input", files.write_npy(tmp_path / "x.npy", np.ones((1, 2, 3), "f4")), "-w"],
    ):
        assert_one_line(lstmcli(*args, path, cwd=tmp_path), 65, "posix.system", "evil.pt")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["evil.pt", "x.npy"]


T0 = wf.p_tuple(wf.p_int(1), wf.p_int(1))
# A tuple of a tuple of a tuple ..., each holding the one before twice: 2**60 numbers if anybody looks at all of them.
LAUGHS = T0 + b"q\x00" + b"".join(b"0h" + bytes([k]) + b"h" + bytes([k]) + b"\x86q" + bytes([k + 1]) for k in range(60))
PICKLES = {
    "another global": (b"cnumpy.core.multiarray\nscalar\n", "numpy.core.multiarray.scalar"),
    "a class of a model": (b"c__main__\nNet\n)\x81", "__main__.Net"),
    "TorchScript": (b"c__torch__\nNet\n", "__torch__.Net"),
    "an extension": (b"\x82\x01", "EXT1"),
    "an instance": (b"(i__main__\nNet\n", "__main__.Net"),
    "a stack that is empty": (b"0", ""),
    "a tuple of nothing": (b"t", ""),
    "a memo that is empty": (b"h\x05", ""),
    "no end": (b"N" * 10, ""),
    "a storage without a kind": (wf.p_tuple(*map(wf.p_text, ("storage", "Float", "0", "cpu", "1"))) + b"Q", "storage"),
    "a call of a text": (wf.p_text("print") + b")R", "call"),
    "a call of laughs": (LAUGHS + b")R", "call"),
    "a global of laughs": (LAUGHS + LAUGHS + b"\x93", "global"),
    "a storage of laughs": (LAUGHS + b"Q", "storage"),
    "a state": (b"N" + wf.p_text("state") + b"b", "state"),
    "laughs as a key": (b"}" + LAUGHS + b"Ns", "expected the weights"),
    "laughs": (LAUGHS, "expected the weights"),
    "itself": (b"}q\x00" + wf.p_text("a") + b"h\x00s", "expected the weights"),
    "nested": (b"]" * 50_000 + b"a" * 49_999, "expected the weights"),
    "a long number": (b"\x8b\xff\xff\xff\x7f", ""),
    "a key without a value": (b"}(" + wf.p_text("a") + b"u", ""),
}  # fmt: skip


@pytest.mark.parametrize("what", PICKLES)
def test_pickles_that_are_no_weights(what: str, tmp_path: Path) -> None:
    pickled, words = PICKLES[what]
    assert words in refusal(wf.write_pt(tmp_path / "a", pickled, {}))


GOOD = {"shape": (20, 3), "strides": (3, 1), "count": 60}
LIES = {
    "more than the storage": {"shape": (20, 4), "strides": (4, 1)},
    "an offset beyond the end": {"offset": 1},
    "strides beyond the end": {"strides": (4, 1)},
    "strides of zero": {"shape": (1 << 20, 1 << 20), "strides": (0, 0)},
    "a storage that is longer": {"count": 61},
    "a storage of terabytes": {"count": 1 << 40, "shape": (1 << 20, 1 << 20), "strides": (1 << 20, 1)},
    "a negative stride": {"strides": (-3, 1)},
    "a stride too few": {"strides": (3,)},
    "integers": {"kind": "Int"},
    "a missing storage": {"key": "99"},
}


@pytest.mark.parametrize("what", LIES)
def test_tensors_that_lie_about_their_size(what: str, tmp_path: Path) -> None:
    tensors = wf.torch_state_dict(naive.Stack(STACK.layers[:1]))
    data = {str(k): np.ascontiguousarray(value).tobytes() for k, value in enumerate(tensors.values())}
    options = {"key": "0", **GOOD, **LIES[what]}
    pairs = [("weight_ih_l0", wf.p_tensor(**options))]  # type: ignore[arg-type]
    pairs += [
        (n, wf.p_tensor(str(k), v.size, v.shape, (v.shape[-1], 1)[-v.ndim :])) for k, (n, v) in enumerate(tensors.items()) if k
    ]
    refusal(wf.write_pt(tmp_path / "a", wf.p_dict(pairs), data))


def test_other_containers_are_refused_by_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "old.pt").write_bytes(pickle.dumps({"x": list(range(10))}, 2))
    assert "safetensors" in refusal(tmp_path / "old.pt")
    np.savez(tmp_path / "a.npz", x=np.ones(3))
    assert "x.npy" in refusal(tmp_path / "a.npz")
    assert "byteorder" in refusal(wf.write_pt(tmp_path / "big.pt", b"}", {}, byteorder=b"big"))
    with zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}." + b" " * 100)
    assert "zip -0" in refusal(tmp_path / "packed.pt")


# The way back.


@pytest.mark.parametrize("name", MODELS)
def test_export_and_import_again(name: str, tmp_path: Path) -> None:
    files.write_model(tmp_path / "model.h5", MODELS[name])
    ran = succeed("model", "export", "model.h5", "-o", "out.safetensors", cwd=tmp_path)
    assert "weight_hh_l0 " in ran.text
    assert_same(tree(tmp_path / "out.safetensors"), MODELS[name])


def test_export_folds_the_forget_bias(tmp_path: Path) -> None:
    cells = [replace(STACK.layers[0], forget_bias=1.0), replace(STACK.layers[1], bias=None, forget_bias=0.5)]  # type: ignore[type-var]
    files.write_model(tmp_path / "model.h5", naive.Stack(tuple(cells)))
    succeed("model", "export", "model.h5", "-o", "out.safetensors", cwd=tmp_path)
    got = tree(tmp_path / "out.safetensors")
    x = np.random.default_rng(0).normal(size=(2, 6, 3))
    np.testing.assert_allclose(naive.run(got, x)[0], naive.run(naive.Stack(tuple(cells)), x)[0], rtol=0, atol=1e-6)


def test_bidirectional_of_stacks_of_one_is_a_layer(tmp_path: Path) -> None:
    model = naive.Bidirectional(naive.Stack((wf.random_cell(3, 4, 0),)), naive.Stack((wf.random_cell(3, 4, 1),)))
    files.write_model(tmp_path / "model.h5", model)
    succeed("model", "export", "model.h5", "-o", "out.safetensors", cwd=tmp_path)
    assert_same(tree(tmp_path / "out.safetensors"), naive.Stack(BOTH.layers[:1]))


CELL = wf.random_cell(4, 4, 0)
INEXPRESSIBLE: dict[str, naive.Node] = {
    "peephole": replace(CELL, peephole=np.ones((3, 4), "f4")),
    "cell_clip 3.0": replace(CELL, cell_clip=3.0),
    "gate_clip 2.0": replace(CELL, gate_clip=2.0),
    "input_forget": replace(CELL, input_forget=True),
    "activation relu": replace(CELL, activation="relu"),
    "recurrent_activation hard_sigmoid": replace(CELL, recurrent_activation="hard_sigmoid"),
    "merge sum": naive.Bidirectional(CELL, CELL, "sum"),
    "residual": naive.Residual(CELL),
    "reverse": naive.Reverse(CELL),
    "different units": naive.Stack((CELL, wf.random_cell(4, 5, 1))),
    "different projection": naive.Stack((CELL, wf.random_cell(4, 4, 1, projection=3))),
    "one direction and of two": naive.Stack((CELL, naive.Bidirectional(CELL, CELL))),
    "bidirectional": naive.Bidirectional(naive.Stack((CELL, CELL)), naive.Stack((CELL, CELL))),
}


@pytest.mark.parametrize("what", INEXPRESSIBLE)
def test_export_names_what_pytorch_cannot_express(what: str, tmp_path: Path) -> None:
    files.write_model(tmp_path / "model.h5", INEXPRESSIBLE[what])
    ran = lstmcli("model", "export", "model.h5", "-o", "out.safetensors", cwd=tmp_path)
    assert_one_line(ran, 2, "torch.nn.LSTM", what)
    assert not (tmp_path / "out.safetensors").exists()


def test_export_keeps_an_existing_file(tmp_path: Path) -> None:
    files.write_model(tmp_path / "model.h5", STACK)
    (tmp_path / "out.safetensors").write_bytes(b"precious")
    args = ["model", "export", "model.h5", "-o", "out.safetensors"]
    assert_one_line(lstmcli(*args, cwd=tmp_path), 73, "out.safetensors")
    assert (tmp_path / "out.safetensors").read_bytes() == b"precious"
    succeed(*args, "--overwrite", cwd=tmp_path)


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_pytorch_itself(tmp_path: Path) -> None:
    """What torch.save writes is read, and what is exported is loaded, with the same outputs."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch; the vowels' files stand for it")
    torch.manual_seed(0)
    x = torch.randn(2, 7, 3)
    for options in ({}, {"bidirectional": True}, {"proj_size": 2}, {"bias": False, "bidirectional": True, "proj_size": 3}):
        module = torch.nn.LSTM(3, 5, num_layers=2, batch_first=True, **options)
        want = module(x)[0].detach().numpy()
        torch.save({"epoch": 1, "state": module.state_dict()}, tmp_path / "a.pt")
        model = tree(tmp_path / "a.pt")
        np.testing.assert_allclose(naive.run(model, x.numpy())[0], want, rtol=0, atol=2e-6)
        succeed("model", "import", "a.pt", "-o", "model.h5", "--overwrite", cwd=tmp_path)
        assert_same(tree(tmp_path / "model.h5"), model)
        succeed("model", "export", "model.h5", "-o", "out.safetensors", "--overwrite", cwd=tmp_path)
        assert_same(tree(tmp_path / "out.safetensors"), model)
