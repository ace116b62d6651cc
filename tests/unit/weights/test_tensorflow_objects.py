"""TensorFlow 2: checkpoints of objects, and SavedModels with what Keras 2 said of their layers."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import naive
from helpers import weight_files as wf
from helpers.command import succeed
from helpers.weight_imports import assert_same, load, refusal, tree

from lstmcli.errors import DataError
from lstmcli.weights.chains.load import load_chain
from lstmcli.weights.draft import Choices

A, B, C = (wf.random_cell(features, units, seed) for seed, (features, units) in enumerate([(3, 4), (4, 5), (5, 2)]))
FW, BW = wf.random_cell(3, 2, 10), wf.random_cell(3, 2, 11)
NAMES = ("kernel", "recurrent_kernel", "bias")


def stack(*layers: naive.Node) -> naive.Stack:
    return naive.Stack(layers)


def objects(cells: dict[str, naive.Cell]) -> wf.Arrays:
    """By the places of cells."""
    return {
        f"{place}/{name}": value
        for place, cell in cells.items()
        for name, value in zip(NAMES, wf.keras_arrays(cell), strict=False)
    }


def programs(layers: dict[str, str], old: bool = False) -> dict[str, str]:
    """What TensorFlow 2.2 and later, or before, call the variables, by the names of the layers at the cells' places."""
    cell = "" if old else "lstm_cell/"
    return {f"{place}/{name}": f"{layer}/{cell}{name}" for place, layer in layers.items() for name in NAMES}


def sequential(path: Path, cells: list[naive.Cell], between: str | None = None, old: bool = False) -> Path:
    """A model of LSTM layers. between: what the object of a layer without weights has, which stands before the second one."""
    places = {f"layer_with_weights-{k}/cell": cell for k, cell in enumerate(cells)}
    called = programs({place: f"lstm_{k}" for k, place in enumerate(places)}, old)
    later = 0 if between is None else 1
    links = {f"layer-{k + later * (k > 0)}": f"layer_with_weights-{k}" for k in range(len(cells))}
    return wf.write_objects(path, objects(places), called, links, [f"layer-1/{between}"] if later else [])


def test_a_stack_of_layers(tmp_path: Path) -> None:
    path = sequential(tmp_path / "a", [A, B, C])
    assert_same(tree(path), stack(A, B, C))
    assert any("recurrent_activation sigmoid is assumed" in sentence for sentence in load(path).assumed)
    assert any("order" in sentence for sentence in load(path).assumed)
    hard = [replace(cell, recurrent_activation="hard_sigmoid_keras2") for cell in (A, B, C)]
    assert_same(tree(path, recurrent_activation="hard_sigmoid_keras2"), stack(*hard))
    many = [wf.random_cell(4, 4, k) for k in range(12)]
    assert_same(tree(sequential(tmp_path / "b", many)), stack(*many))


def test_what_may_stand_between(tmp_path: Path) -> None:
    assert_same(tree(sequential(tmp_path / "a", [A, B], "_random_generator")), stack(A, B))
    path = sequential(tmp_path / "b", [A, B], "keras_api")
    text = refusal(path)
    assert all(word in text for word in ("2 LSTMs", "layer_with_weights-0", "lstm_1"))
    assert_same(tree(path, select=("layer_with_weights-0", "layer_with_weights-1")), stack(A, B))


def test_names_before_tensorflow_2_2_leave_the_gates_open(tmp_path: Path) -> None:
    path = sequential(tmp_path / "a", [A], old=True)
    assert "--recurrent-activation" in refusal(path)
    assert_same(tree(path, recurrent_activation="sigmoid"), stack(A))


def test_bidirectional_layers_and_several_cells(tmp_path: Path) -> None:
    pair = {"layer_with_weights-0/forward_layer/cell": FW, "layer_with_weights-0/backward_layer/cell": BW}
    called = programs({place: f"bidirectional/{place.split('/')[1]}" for place in pair})
    path = wf.write_objects(tmp_path / "a", objects(pair), called)
    assert_same(tree(path), stack(naive.Bidirectional(FW, BW)))
    many = [wf.random_cell(4, 4, k) for k in range(12)]
    places = {f"layer_with_weights-0/cell/cells/{k}": cell for k, cell in enumerate(many)}
    path = wf.write_objects(tmp_path / "b", objects(places), programs(dict.fromkeys(places, "rnn")))
    assert_same(tree(path), stack(*many))


def test_attributes_of_an_author_s_model(tmp_path: Path) -> None:
    places = {"model/enc/cell": A, "model/dec/cell": B, "model/_many/0/cell": C}
    variables = objects(places) | {"optimizer/_variables/0": np.ones((3, 16), "f4"), "save_counter": np.array(3)}
    path = wf.write_objects(tmp_path / "a", variables, programs(dict.fromkeys(places, "lstm")))
    assert "3 LSTMs" in refusal(path)
    assert_same(tree(path, select="model/enc"), stack(A))
    assert_same(tree(path, select=("model/enc", "model/dec", "model/_many/0")), stack(A, B, C))


def test_other_weights_are_refused_by_name(tmp_path: Path) -> None:
    for k, more in enumerate(["enc/cell/gamma", "enc/cell/norm/gamma", "enc/attention/kernel"]):
        variables = objects({"enc/cell": A}) | {more: np.ones((4, 4), "f4")}
        assert more in refusal(wf.write_objects(tmp_path / f"{k}", variables, programs({"enc/cell": "lstm"})))
    variables = objects({"enc/cell": A}) | {"enc/states/0": np.ones(3, "i8")}
    assert_same(tree(wf.write_objects(tmp_path / "n", variables, programs({"enc/cell": "lstm"}))), stack(A))


def test_no_bias(tmp_path: Path) -> None:
    plain = replace(A, bias=None)
    path = wf.write_objects(tmp_path / "a", objects({"enc/cell": plain}), programs({"enc/cell": "lstm"}))
    assert_same(tree(path), stack(plain))


def test_variables_that_only_a_list_holds_have_their_programs_names(tmp_path: Path) -> None:
    """As Keras 3 exports a model: what stands between its layers is not said."""
    arrays = [*wf.keras_arrays(A), *wf.keras_arrays(B), np.ones((5, 2), "f4")]
    called = [f"m/lstm_{k}/lstm_cell/{name}" for k in (4, 5) for name in NAMES] + ["m/dense/kernel"]
    places = [f"variables/{k}" for k in range(len(arrays))]
    path = wf.write_objects(tmp_path / "a", dict(zip(places, arrays, strict=True)), dict(zip(places, called, strict=True)))
    assert "2 LSTMs" in refusal(path)
    assert_same(tree(path, select="m/lstm_4"), stack(A))
    assert_same(tree(path, select=("m/lstm_4", "m/lstm_5")), stack(A, B))


# SavedModels.

DROPOUT = {"class_name": "Dropout", "config": {"name": "dropout"}}


def saved_model(
    path: Path,
    cells: dict[str, naive.Cell],
    said: dict[str, dict[str, Any]],
    newer: bool = True,
    others: wf.Arrays | None = None,
) -> Path:
    """said: of the objects at these places. newer: in keras_metadata.pb, else saved_model.pb. others: more variables."""
    (path / "variables").mkdir(parents=True)
    variables = objects(cells) | (others or {})
    wf.write_objects(path / "variables" / "variables", variables, programs(dict.fromkeys(cells, "l")), listed=True)
    nodes = []
    if newer:
        for place, each in said.items():
            names = ["root", *filter(None, place.split("/"))]
            nodes.append(wf.field(3, ".".join(names)) + wf.field(5, json.dumps(each)))
        (path / "keras_metadata.pb").write_bytes(b"".join(wf.field(1, node) for node in nodes))
        graph = b""
    else:
        parts = [name.split("/") for name in variables]
        places = sorted({"/".join(names[:k]) for names in parts for k in range(len(names) + 1)})
        for place in places:
            below = [other for other in places if other and other.rpartition("/")[0] == place]
            children = [wf.field(1, places.index(other)) + wf.field(2, other.rpartition("/")[2]) for other in below]
            user = wf.field(1, "_tf_keras_layer") + wf.field(3, json.dumps(said[place]) if place in said else "")
            nodes.append(b"".join(wf.field(1, child) for child in children) + wf.field(4, user))
        graph = wf.field(7, b"".join(wf.field(1, node) for node in nodes))
    (path / "saved_model.pb").write_bytes(wf.field(1, 1) + wf.field(2, graph))
    return path


@pytest.mark.parametrize("newer", [True, False])
def test_a_saved_model_has_its_configuration(newer: bool, tmp_path: Path) -> None:
    layers = [wf.keras_lstm("one", 4, recurrent_activation="hard_sigmoid"), DROPOUT, wf.keras_lstm("two", 5, activation="relu")]
    said = {"": wf.sequential(*layers) | {"keras_version": "2.9.0"}} | {
        f"layer_with_weights-{k}": {"name": layer["config"]["name"], **layer}  # type: ignore[index]
        for k, layer in enumerate((layers[0], layers[2]))
    }
    places = {f"layer_with_weights-{k}/cell": cell for k, cell in enumerate((A, B))}
    path = saved_model(tmp_path / "export", places, said, newer)
    want = stack(replace(A, recurrent_activation="hard_sigmoid_keras2"), replace(B, activation="relu"))
    for given in (path, path / "saved_model.pb", path / "variables", path / "variables" / "variables.index"):
        assert_same(tree(given), want)
    assert load(path).assumed == ()
    assert "says all" in refusal(path, 2, activation="tanh")


@pytest.mark.parametrize("newer", [True, False])
def test_a_saved_model_is_whole(newer: bool, tmp_path: Path) -> None:
    """Each layer's weights lie where its name is said, in models inside as well."""
    rng = np.random.default_rng(0)
    others = {f"layer_with_weights-1/layer_with_weights-0/{name}": rng.normal(size=size).astype("f4")
              for name, size in (("kernel", (4, 2)), ("bias", 2))}  # fmt: skip
    one = wf.keras_lstm("one", 4)
    dense = {"class_name": "Dense", "config": {"name": "dense", "units": 2, "use_bias": True, "activation": "hard_sigmoid"}}
    inner = {"class_name": "Sequential", "config": {"name": "head", "layers": [dense]}}
    said = {"": wf.sequential(one, inner) | {"keras_version": "2.9.0"}}
    named = {"layer_with_weights-0": one, "layer_with_weights-1": inner, "layer_with_weights-1/layer_with_weights-0": dense}
    said |= {place: {"name": entry["config"]["name"], **entry} for place, entry in named.items()}  # type: ignore[index]
    path = saved_model(tmp_path / "export", {"layer_with_weights-0/cell": A}, said, newer, others)
    x = rng.normal(size=(2, 5, 3))
    kernel, bias = others.values()
    want = np.clip(0.2 * (naive.run(A, x)[0] @ kernel + bias) + 0.5, 0, 1)
    got = load_chain(str(path), Choices()).chain.predict(x.astype(np.float32))
    np.testing.assert_allclose(got, want, atol=3e-6)


def test_a_saved_model_of_an_author_s_class_has_the_configurations_of_its_layers(tmp_path: Path) -> None:
    said = {"": {"name": "mine", "class_name": "Mine", "config": {}, "keras_version": "2.9.0"}} | {
        name: {"name": f"lstm_{name}", **wf.keras_lstm(f"lstm_{name}", 4, activation="relu")} for name in ("enc", "dec")
    }
    path = saved_model(tmp_path / "export", {"enc/cell": A, "dec/cell": wf.random_cell(3, 4, 5)}, said)
    assert "2 LSTMs" in refusal(path)
    assert_same(tree(path, select="enc"), stack(replace(A, activation="relu")))
    said["enc"] |= {"class_name": "Mine>PeepholeLSTM"}
    assert "PeepholeLSTM" in refusal(saved_model(tmp_path / "other", {"enc/cell": A}, said))


def test_a_saved_model_without_a_word_of_keras(tmp_path: Path) -> None:
    path = saved_model(tmp_path / "export", {"rnn/cell": A}, {}, newer=False)
    assert_same(tree(path), stack(A))
    np.save(tmp_path / "x.npy", np.ones((2, 3, 3), "f4"))
    succeed("run", "-i", "x.npy", "-w", "export", "-o", "o.h5", cwd=tmp_path)
    (path / "variables" / "variables.index").unlink()
    assert "variables" in refusal(path)


# Damage.


@pytest.mark.parametrize(
    "graph",
    [
        wf.field(1, wf.field(1, wf.field(1, 7) + wf.field(2, "enc"))),
        b"",
        b"\xff" * 20,
        wf.field(1, wf.field(1, wf.field(1, -1))),
    ],
)
def test_graphs_that_lead_to_nothing(graph: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wf, "object_graph", lambda *_: graph)
    assert "damaged" in refusal(wf.write_objects(tmp_path / "a", objects({"enc/cell": A})))


def test_objects_in_a_circle(tmp_path: Path) -> None:
    path = wf.write_objects(
        tmp_path / "a", objects({"enc/cell": A}), programs({"enc/cell": "lstm"}), {"enc/me": "enc", "enc/root": ""}
    )
    assert_same(tree(path), stack(A))


def test_flipped_bits(tmp_path: Path) -> None:
    """All is under checksums."""
    path = sequential(tmp_path / "a", [A, B])
    want = stack(A, B)
    rng = np.random.default_rng(0)
    for damaged in (path, tmp_path / "a.data-00000-of-00001"):
        whole = damaged.read_bytes()
        for place in rng.integers(0, len(whole), 60):
            damaged.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << rng.integers(8)]) + whole[place + 1 :])
            with contextlib.suppress(DataError):
                assert_same(tree(path), want)
        damaged.write_bytes(whole)


@pytest.mark.parametrize("newer", [True, False])
def test_a_damaged_description_of_a_saved_model(newer: bool, tmp_path: Path) -> None:
    """It is under no checksum: refused, or the weights are those of the file."""
    layer = {"name": "one", **wf.keras_lstm("one", 4)}
    said = {"": wf.sequential(layer) | {"keras_version": "2.9.0"}, "layer_with_weights-0": layer}
    path = saved_model(tmp_path / "export", {"layer_with_weights-0/cell": A}, said, newer)
    damaged = path / ("keras_metadata.pb" if newer else "saved_model.pb")
    whole, rng = damaged.read_bytes(), np.random.default_rng(1)
    for place in rng.integers(0, len(whole), 150):
        damaged.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << rng.integers(8)]) + whole[place + 1 :])
        with contextlib.suppress(DataError):
            (cell,) = [each for _, each in load(path).model.cells()]
            np.testing.assert_array_equal(cell.input_kernel, A.input_kernel)
