"""Keras: archives, weights alone and the older HDF5 files, with what their configurations say."""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers import naive, speech
from helpers import weight_files as wf
from helpers.command import assert_one_line, lstmcli
from helpers.weight_imports import assert_same, load, refusal, tree

from lstmcli.errors import DataError

A, B, C = (wf.random_cell(features, units, seed) for seed, (features, units) in enumerate([(3, 4), (4, 5), (5, 2)]))
FW, BW = wf.random_cell(3, 2, 10), wf.random_cell(3, 2, 11)
PAIR = {"layers/bidirectional/forward_layer": FW, "layers/bidirectional/backward_layer": BW}


def weights(cells: Mapping[str, naive.Cell], names: Mapping[str, str] = {}) -> bytes:
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        wf.write_keras_h5(file, cells, names)
    return image.getvalue()


def archive(
    path: Path, config: object, cells: Mapping[str, naive.Cell], names: Mapping[str, str] = {}, version: str = "3.15.1"
) -> Path:
    return wf.write_keras(path, config, weights(cells, names), version)


def alone(path: Path, cells: Mapping[str, naive.Cell]) -> Path:
    path.write_bytes(weights(cells))
    return path


THREE = {"layers/lstm": A, "layers/lstm_1": B, "layers/lstm_2": C}
DENSE = {"class_name": "Dense", "config": {"name": "dense"}}
DROPOUT = {"class_name": "Dropout", "config": {"name": "dropout"}}


def test_layers_in_the_order_of_the_configuration(tmp_path: Path) -> None:
    """Whose own names are others than those of their groups."""
    config = wf.sequential(wf.keras_lstm("z", 4), DROPOUT, wf.keras_lstm("y", 5), wf.keras_lstm("x", 2), DENSE)
    path = archive(tmp_path / "a", config, THREE)
    assert_same(tree(path), naive.Stack((A, B, C)))
    lines = [(mapped.name, mapped.path, mapped.field) for mapped in load(path).mapping]
    assert ("layers/lstm_1/cell/vars/1", "1", "recurrent_kernel") in lines


def test_groups_say_whose_they_are(tmp_path: Path) -> None:
    """Newer files name the layer in an attribute, which comes before counting the classes."""
    config = wf.sequential(wf.keras_lstm("first", 4), wf.keras_lstm("second", 5), wf.keras_lstm("third", 2))
    cells = {"layers/lstm": C, "layers/lstm_1": A, "layers/lstm_2": B}
    names = {"layers/lstm": "third", "layers/lstm_1": "first", "layers/lstm_2": "second"}
    assert_same(tree(archive(tmp_path / "a", config, cells, names)), naive.Stack((A, B, C)))


def test_more_than_ten_layers(tmp_path: Path) -> None:
    many = [wf.random_cell(4, 4, k) for k in range(12)]
    groups = {f"layers/lstm_{k}" if k else "layers/lstm": cell for k, cell in enumerate(many)}
    config = wf.sequential(*(wf.keras_lstm(f"l{k}", 4) for k in range(12)))
    assert_same(tree(archive(tmp_path / "a", config, groups)), naive.Stack(tuple(many)))
    assert_same(tree(alone(tmp_path / "b", groups)), naive.Stack(tuple(many)))
    named = {f"layers/lstm_{k}" if k else "layers/lstm": f"layer_{20 - k}" for k in range(12)}
    (tmp_path / "c").write_bytes(weights(groups, named))
    assert_same(tree(tmp_path / "c"), naive.Stack(tuple(many)))


@pytest.mark.parametrize(("merge_mode", "merge"), [("concat", "concat"), ("sum", "sum"), ("mul", "mul"), ("ave", "mean")])
def test_merge_modes(merge_mode: str, merge: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "a", wf.sequential(wf.keras_bidirectional("both", 2, merge_mode)), PAIR)
    assert_same(tree(path), naive.Stack((naive.Bidirectional(FW, BW, merge),)))


def test_no_merge_is_refused(tmp_path: Path) -> None:
    for merge_mode in (None, ["concat"], "max"):
        config = wf.sequential(wf.keras_bidirectional("both", 2, merge_mode))
        assert "merge_mode" in refusal(archive(tmp_path / "a", config, PAIR))


def test_no_bias(tmp_path: Path) -> None:
    cell = replace(A, bias=None)
    path = archive(tmp_path / "a", wf.sequential(wf.keras_lstm("l", 4, use_bias=False)), {"layers/lstm": cell})
    assert_same(tree(path), naive.Stack((cell,)))


@pytest.mark.parametrize(
    ("version", "form"), [("2.13.1", "hard_sigmoid_keras2"), ("3.0.0", "hard_sigmoid"), ("10.1", "hard_sigmoid")]
)
def test_hard_sigmoid_by_version(version: str, form: str, tmp_path: Path) -> None:
    config = wf.sequential(wf.keras_lstm("l", 4, activation="relu", recurrent_activation="hard_sigmoid"))
    path = archive(tmp_path / "a", config, {"layers/lstm": A}, version=version)
    assert_same(tree(path), naive.Stack((replace(A, activation="relu", recurrent_activation=form),)))
    path = wf.write_legacy_h5(tmp_path / "b", {"l": wf.legacy_weights("l/lstm_cell", A)}, config, version)
    assert_same(tree(path), naive.Stack((replace(A, activation="relu", recurrent_activation=form),)))


def test_hard_sigmoid_of_an_unknown_version(tmp_path: Path) -> None:
    config = wf.sequential(wf.keras_lstm("l", 4, recurrent_activation="hard_sigmoid"))
    assert "Keras 2" in refusal(wf.write_legacy_h5(tmp_path / "a", {"l": wf.legacy_weights("l/lstm_cell", A)}, config, None))


@pytest.mark.parametrize(
    "config",
    [{"activation": "swish"}, {"recurrent_activation": "tanh"}, {"activation": {"class_name": "function", "config": "my>f"}},
     {"activation": ["tanh"]}, {"units": 5}, {"use_bias": False}],
)  # fmt: skip
def test_configurations_that_cannot_be_run(config: dict[str, Any], tmp_path: Path) -> None:
    (word,) = config
    path = archive(tmp_path / "a", wf.sequential(wf.keras_lstm("l", **{"units": 4, **config})), {"layers/lstm": A})
    assert word.removesuffix("_bias") in refusal(path)


def test_activation_as_an_object(tmp_path: Path) -> None:
    config = wf.sequential(
        wf.keras_lstm("l", 4, activation={"class_name": "function", "config": "elu"}, recurrent_activation="sigmoid")
    )
    assert_same(tree(archive(tmp_path / "a", config, {"layers/lstm": A})), naive.Stack((replace(A, activation="elu"),)))


def test_go_backwards_turns_the_layers_above_round(tmp_path: Path) -> None:
    """Keras gives the outputs of such a layer last step first."""
    config = wf.sequential(
        wf.keras_lstm("a", 4, go_backwards=True), wf.keras_lstm("b", 5), wf.keras_lstm("c", 2, go_backwards=True)
    )
    got = tree(archive(tmp_path / "a", config, THREE))
    assert_same(got, naive.Stack((naive.Reverse(A), naive.Reverse(B), C)))
    x = np.random.default_rng(0).normal(size=(2, 6, 3))
    y, _ = naive.run(A, x[:, ::-1])
    y, _ = naive.run(B, y)
    y, _ = naive.run(C, y[:, ::-1])
    np.testing.assert_array_equal(naive.run(got, x)[0], y)
    last = load(archive(tmp_path / "b", wf.sequential(wf.keras_lstm("a", 4, go_backwards=True)), {"layers/lstm": A}))
    assert "go_backwards" in last.notes[0]


def functional(*layers: tuple[dict[str, Any], str | None], keras: int = 3, output: int = 0) -> dict[str, Any]:
    """Each layer with the name of the one that feeds it."""
    entries = []
    for layer, source in layers:
        tensor: Any = {"class_name": "__keras_tensor__", "config": {"keras_history": [source, 0, output]}}
        nodes: Any = [{"args": [tensor], "kwargs": {}}] if keras == 3 else [[[source, 0, output, {}]]]
        entries.append({**layer, "name": layer["config"]["name"], "inbound_nodes": nodes if source else []})
    return {"class_name": "Functional", "config": {"name": "functional", "layers": entries}}


INPUT = {"class_name": "InputLayer", "config": {"name": "x"}}


@pytest.mark.parametrize("keras", [2, 3])
def test_a_graph_by_its_connections(keras: int, tmp_path: Path) -> None:
    graph = [(INPUT, None), (wf.keras_lstm("c", 5), "dropout"), (DROPOUT, "a"), (wf.keras_lstm("a", 4), "x")]
    ordered = [graph[0], graph[3], graph[2], graph[1]]
    path = archive(tmp_path / "a", functional(*ordered, keras=keras), {"layers/lstm": A, "layers/lstm_1": B})
    assert_same(tree(path), naive.Stack((A, B)))
    apart = [graph[0], graph[3], ({"class_name": "Dense", "config": {"name": "dropout"}}, "a"), graph[1]]
    path = archive(tmp_path / "b", functional(*apart, keras=keras), {"layers/lstm": A, "layers/lstm_1": B})
    text = refusal(path)
    for word in ("2 LSTMs", "--select", "a (3, 16)", "c (4, 20)"):
        assert word in text
    assert_same(tree(path, select="c"), naive.Stack((B,)))


def test_a_state_and_a_last_output_feed_no_layer(tmp_path: Path) -> None:
    cells = {"layers/lstm": A, "layers/lstm_1": B}
    graph = [(INPUT, None), (wf.keras_lstm("a", 4), "x"), (wf.keras_lstm("b", 5), "a")]
    assert_same(tree(archive(tmp_path / "a", functional(*graph), cells)), naive.Stack((A, B)))
    assert "2 LSTMs" in refusal(archive(tmp_path / "b", functional(*graph, output=1), cells))
    graph[1] = (wf.keras_lstm("a", 4, return_sequences=False), "x")
    assert "2 LSTMs" in refusal(archive(tmp_path / "c", functional(*graph), cells))


def test_an_initial_state_from_the_graph_is_said(tmp_path: Path) -> None:
    config = functional((INPUT, None), (wf.keras_lstm("a", 4), "x"))
    assert load(archive(tmp_path / "a", config, {"layers/lstm": A})).notes == ()
    config["config"]["layers"][1]["inbound_nodes"][0]["kwargs"]["initial_state"] = [{}, {}]
    assert "initial state" in load(archive(tmp_path / "b", config, {"layers/lstm": A})).assumed[0]
    config = functional((INPUT, None), (wf.keras_lstm("a", 4), "x"), keras=2)
    config["config"]["layers"][1]["inbound_nodes"][0] += [["h", 0, 1, {}], ["c", 0, 2, {}]]
    assert "initial state" in load(archive(tmp_path / "c", config, {"layers/lstm": A})).assumed[0]


def test_models_in_a_model(tmp_path: Path) -> None:
    inner = wf.sequential(wf.keras_lstm("lstm", 4))
    inner["config"]["name"] = "encoder"  # type: ignore[index]
    config = wf.sequential(inner, DENSE, wf.keras_lstm("decoder", 5))
    path = archive(tmp_path / "a", config, {"layers/sequential/layers/lstm": A, "layers/lstm": B})
    assert "encoder/lstm" in refusal(path)
    assert_same(tree(path, select="encoder"), naive.Stack((A,)))
    assert_same(tree(path, select="decoder"), naive.Stack((B,)))
    old = {"encoder": wf.legacy_weights("lstm/lstm_cell", A), "decoder": wf.legacy_weights("decoder/lstm_cell_1", B)}
    path = wf.write_legacy_h5(tmp_path / "b", old, config)
    assert_same(tree(path, select="encoder"), naive.Stack((A,)))


def test_keras_2_13(tmp_path: Path) -> None:
    path = archive(
        tmp_path / "a", wf.sequential(wf.keras_lstm("l", 4)), {"_layer_checkpoint_dependencies/lstm": A}, version="2.13.1"
    )
    assert_same(tree(path), naive.Stack((A,)))


def test_weights_of_a_layer_missing(tmp_path: Path) -> None:
    config = wf.sequential(wf.keras_lstm("a", 4), wf.keras_lstm("b", 5))
    assert "'b'" in refusal(archive(tmp_path / "a", config, {"layers/lstm": A}))


# Weights alone.


def test_weights_alone_and_what_is_assumed(tmp_path: Path) -> None:
    path = alone(tmp_path / "a", THREE)
    assert_same(tree(path), naive.Stack((A, B, C)))
    assert "assumed" in load(path).assumed[0]
    relu = naive.Stack(tuple(replace(cell, activation="relu") for cell in (A, B, C)))
    assert_same(tree(path, activation="relu"), relu)
    assert "--forget-bias" in refusal(path, 2, forget_bias=1.0)


def test_order_between_classes_by_the_only_one_that_fits(tmp_path: Path) -> None:
    top = wf.random_cell(4, 6, 12)
    path = alone(tmp_path / "a", {"layers/lstm": top, **PAIR})
    assert_same(tree(path), naive.Stack((naive.Bidirectional(FW, BW), top)))
    same = wf.random_cell(4, 4, 13), wf.random_cell(4, 2, 14), wf.random_cell(4, 2, 15)
    cells = {
        f"layers/{name}": cell
        for name, cell in zip(("lstm", "bidirectional/forward_layer", "bidirectional/backward_layer"), same, strict=True)
    }
    assert "2 LSTMs" in refusal(alone(tmp_path / "b", cells))


def test_a_gru_is_no_lstm(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a", "w") as file:
        for k, shape in enumerate([(3, 12), (4, 12), (2, 12)]):
            file[f"layers/gru/cell/vars/{k}"] = np.ones(shape, "f4")
    assert "layers/gru/cell/vars/0 (3, 12)" in refusal(tmp_path / "a")


# Keras 2.

OLD = {
    "lstm_3": wf.legacy_weights("lstm_3/lstm_cell_5", A),
    "dense": {"dense/kernel:0": np.ones((4, 2), "f4")},
    "lstm_1": wf.legacy_weights("lstm_1/lstm_cell_7", B),
}


def test_old_files_in_the_order_of_their_attributes(tmp_path: Path) -> None:
    assert_same(tree(wf.write_legacy_h5(tmp_path / "a", OLD)), naive.Stack((A, B)))
    config = wf.sequential(wf.keras_lstm("lstm_3", 4), DROPOUT, wf.keras_lstm("lstm_1", 5))
    assert_same(tree(wf.write_legacy_h5(tmp_path / "b", OLD, config)), naive.Stack((A, B)))
    before = {"lstm_3": wf.legacy_weights("lstm_3", A)}  # Keras 2.2 has no name of a cell
    assert_same(tree(wf.write_legacy_h5(tmp_path / "c", before)), naive.Stack((A,)))


@pytest.mark.parametrize(
    "scopes",
    ["both/forward_l/lstm_cell_1 both/backward_l/lstm_cell_2", "m/both/forward_l/lstm_cell m/both/backward_l/lstm_cell"],
)
def test_old_bidirectional_layers(scopes: str, tmp_path: Path) -> None:
    one, two = scopes.split()
    layers = {"both": wf.legacy_weights(two, BW) | wf.legacy_weights(one, FW)}
    want = naive.Stack((naive.Bidirectional(FW, BW),))
    assert_same(tree(wf.write_legacy_h5(tmp_path / "a", layers)), want)
    assert_same(tree(wf.write_legacy_h5(tmp_path / "b", layers, wf.sequential(wf.keras_bidirectional("both", 2)))), want)


def test_attributes_in_pieces(tmp_path: Path) -> None:
    path = wf.write_legacy_h5(tmp_path / "a", OLD)
    with h5py.File(path, "r+") as file:
        names = file.attrs["layer_names"]
        del file.attrs["layer_names"]
        file.attrs["layer_names0"], file.attrs["layer_names1"] = names[:1], names[1:]
    assert_same(tree(path), naive.Stack((A, B)))


def test_cudnn_lstm(tmp_path: Path) -> None:
    """As Keras converts it: kernels transposed gate by gate, and a bias of two halves."""
    assert A.bias is not None
    arrays = {
        "kernel:0": np.hstack([gate.T.reshape(gate.shape) for gate in np.hsplit(A.input_kernel, 4)]),
        "recurrent_kernel:0": np.hstack([gate.T for gate in np.hsplit(A.recurrent_kernel, 4)]),
        "bias:0": np.concatenate([A.bias, np.zeros_like(A.bias)]),
    }
    layers = {"cu": {f"cu/{name}": value for name, value in arrays.items()}}
    assert_same(tree(wf.write_legacy_h5(tmp_path / "a", layers)), naive.Stack((A,)))
    config = wf.sequential({"class_name": "CuDNNLSTM", "config": {"name": "cu", "units": 4, "return_sequences": True}})
    assert_same(tree(wf.write_legacy_h5(tmp_path / "b", layers, config)), naive.Stack((A,)))


def test_keras_1_is_refused(tmp_path: Path) -> None:
    layers = {"lstm_1": {f"lstm_1_W_{gate}": np.ones((3, 4), "f4") for gate in "ifco"}}
    assert "lstm_1/lstm_1_W_i (3, 4)" in refusal(wf.write_legacy_h5(tmp_path / "a", layers))


def test_a_listed_weight_that_is_missing(tmp_path: Path) -> None:
    path = wf.write_legacy_h5(tmp_path / "a", OLD)
    with h5py.File(path, "r+") as file:
        del file["lstm_1/lstm_1/lstm_cell_7/kernel:0"]
    assert "lstm_1/lstm_cell_7/kernel:0" in refusal(path)


# Nothing is run, and nothing else is read.

LAMBDA = {"class_name": "Lambda", "config": {"name": "evil", "function": ["4wEAAAA=", None, None]}}


@pytest.mark.parametrize(
    "config", [wf.sequential(wf.keras_lstm("l", 4), LAMBDA), wf.sequential(wf.sequential(LAMBDA), wf.keras_lstm("l", 4))]
)
def test_lambda_layers_are_refused_by_name(config: object, tmp_path: Path) -> None:
    path = archive(tmp_path / "a.keras", config, {"layers/lstm": A})
    assert_one_line(lstmcli("model", "import", path, "-o", "m.h5", cwd=tmp_path), 65, "a.keras", "evil", "Lambda")
    assert not (tmp_path / "m.h5").exists()
    path = wf.write_legacy_h5(tmp_path / "b.h5", {"l": wf.legacy_weights("l/lstm_cell", A)}, config)
    assert_one_line(lstmcli("model", "show", path, cwd=tmp_path), 65, "b.h5", "evil", "Lambda")


def external(file: h5py.File, folder: Path) -> None:
    file["layers/lstm/cell/vars/0"] = h5py.ExternalLink(folder / "other.h5", "/layers/lstm/cell/vars/0")


def external_group(file: h5py.File, folder: Path) -> None:
    del file["layers"]
    file["layers"] = h5py.ExternalLink(folder / "other.h5", "/layers")


def soft(file: h5py.File, folder: Path) -> None:
    file["layers/lstm/cell/vars/0"] = h5py.SoftLink("/elsewhere")


def storage(file: h5py.File, folder: Path) -> None:
    file.create_dataset("layers/lstm/cell/vars/0", (3, 16), "f4", external=[(folder / "other.h5", 0, 192)])


def virtual(file: h5py.File, folder: Path) -> None:
    layout = h5py.VirtualLayout((3, 16), "f4")
    layout[:] = h5py.VirtualSource(folder / "other.h5", "layers/lstm/cell/vars/0", (3, 16))
    file.create_virtual_dataset("layers/lstm/cell/vars/0", layout)


ELSEWHERE = {
    "external link": external,
    "group": external_group,
    "soft link": soft,
    "external storage": storage,
    "virtual": virtual,
}


@pytest.mark.parametrize("what", ELSEWHERE)
@pytest.mark.parametrize("packed", [False, True])
def test_weights_in_other_files_are_refused_by_name(what: str, packed: bool, tmp_path: Path) -> None:
    alone(tmp_path / "other.h5", {"layers/lstm": A})
    path = alone(tmp_path / "a.h5", {"layers/lstm": A})
    with h5py.File(path, "r+") as file:
        del file["layers/lstm/cell/vars/0"]
        ELSEWHERE[what](file, tmp_path)
    if packed:
        path = wf.write_keras(tmp_path / "a.keras", wf.sequential(wf.keras_lstm("l", 4)), path.read_bytes())
    name = "layers" if what == "group" else "layers/lstm/cell/vars/0"
    assert_one_line(lstmcli("model", "show", path, cwd=tmp_path), 65, path.name, name)


@pytest.mark.parametrize("offset", [8, 16, 24, 32, 40])
def test_a_damaged_heap_of_texts(offset: int, tmp_path: Path) -> None:
    """libhdf5 would walk one with an object of no size for ever; the place is of the collection's or of an object's size."""
    path = tmp_path / "a"
    path.write_bytes(weights({"layers/lstm": A, "layers/lstm_1": B}, {"layers/lstm": "one", "layers/lstm_1": "two"}))
    data = bytearray(path.read_bytes())
    start = data.index(b"GCOL")
    data[start + offset : start + offset + 8] = bytes(8)
    path.write_bytes(data)
    packed = wf.write_keras(tmp_path / "b", wf.sequential(wf.keras_lstm("one", 4), wf.keras_lstm("two", 5)), bytes(data))
    for damaged in (path, packed):
        with contextlib.suppress(DataError):
            load(damaged)


def test_a_configuration_that_is_not_utf_8(tmp_path: Path) -> None:
    config = wf.sequential(wf.keras_lstm("l", 4))
    path = wf.write_legacy_h5(tmp_path / "a", {"l": wf.legacy_weights("l/lstm_cell", A)}, config)
    data = path.read_bytes()
    assert data.count(b'"sequential"') == 1
    path.write_bytes(data.replace(b'"sequential"', b'"\xffequential"'))
    assert_same(tree(path), naive.Stack((A,)))
    path.write_bytes(data.replace(b'"class_name"', b'"class\xff\xff\xff\xffe"'))
    refusal(path)


def test_datasets_that_claim_terabytes(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a", "w") as file:
        for k, shape in enumerate([(1 << 20, 1 << 18), (1 << 16, 1 << 18)]):
            file.create_dataset(f"layers/lstm/cell/vars/{k}", shape, "f4", chunks=(1 << 10, 1 << 10), compression="gzip")
    assert "claims" in refusal(tmp_path / "a")


CHANGES: dict[str, Callable[[dict[str, bytes]], object]] = {
    "configuration cut": lambda members: members.update({"config.json": members["config.json"][:-1]}),
    "configuration of a list": lambda members: members.update({"config.json": b"[]"}),
    "deep configuration": lambda members: members.update({"config.json": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"}),
    "layers of texts": lambda members: members.update({"config.json": b'{"config": {"layers": ["a", 1, null]}}'}),
    "weights that are none": lambda members: members.update({"model.weights.h5": b"x" * 1000}),
    "no metadata": lambda members: members.pop("metadata.json"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_archives_that_are_damaged(what: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(speech.KERAS) as source:
        members = {name: source.read(name) for name in source.namelist()}
    CHANGES[what](members)
    with zipfile.ZipFile(tmp_path / "a", "w") as target:
        for name, data in members.items():
            target.writestr(name, data)
    refusal(tmp_path / "a")


def test_configuration_that_contains_itself_in_names(tmp_path: Path) -> None:
    """Layers that feed each other in a circle have no bottom."""
    graph = [(wf.keras_lstm("a", 4), "b"), (wf.keras_lstm("b", 4), "a"), (DROPOUT, "dropout")]
    square = wf.random_cell(4, 4, 0)
    refusal(archive(tmp_path / "a", functional(*graph), {"layers/lstm": square, "layers/lstm_1": square}))


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")  # of Keras and its backend, which are not under test
def test_keras_itself(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras", reason="Keras is not installed: pip install keras; the vowels' file stands for it")
    from keras import layers

    x = np.random.default_rng(0).normal(size=(2, 6, 3)).astype(np.float32)
    models = {
        "forms": [layers.LSTM(4, activation="relu", recurrent_activation="hard_sigmoid"), layers.LSTM(5, use_bias=False)],
        "merges": [layers.Bidirectional(layers.LSTM(4), merge_mode=merge) for merge in ("ave", "mul", "sum", "concat")],
        "backwards": [
            layers.LSTM(4, go_backwards=True),
            layers.Bidirectional(layers.LSTM(3)),
            layers.LSTM(2, go_backwards=True),
        ],
    }
    for name, stack in models.items():
        for layer in stack:
            layer.return_sequences = True
            for inner in (getattr(layer, "forward_layer", layer), getattr(layer, "backward_layer", layer)):
                inner.return_sequences = True
        model = keras.Sequential([layers.Input((6, 3)), *stack])
        want = np.asarray(model.predict(x, verbose=0))
        for path in (tmp_path / f"{name}.keras", tmp_path / f"{name}.h5"):
            model.save(path)
            np.testing.assert_allclose(naive.run(tree(path), x)[0], want, rtol=0, atol=2e-6, err_msg=str(path))
