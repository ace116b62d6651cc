"""State dicts made at random: the numbers of the model that they are of, or a refusal, and never anything else.

What the right numbers are is known from how a file was made; nothing here reads it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from helpers import naive
from helpers import weight_files as wf
from helpers.weight_imports import load, tree

from lstmcli.errors import LstmcliError

Arrays = dict[str, np.ndarray]
PARTS = [
    "module",
    "_orig_mod",
    "model",
    "encoder",
    "rnn",
    "lstm",
    "layers.0",
    "cells.1",
    "net",
    "state_dict",
    "lstm_1",
    "module",
]
CELL_KINDS = ["lstm", "lstm", "lstm", "stack", "bidirectional", "projection", "no bias", "cell", "from 1"]


@dataclass
class Made:
    """An LSTM under a prefix. model: what it computes, None where nothing that can be read does."""

    prefix: str
    tensors: Arrays
    model: naive.Stack | None
    touched: bool = False  # whether a tensor was changed or added that a reader may refuse


def a_model(dice: random.Random, features: int) -> tuple[str, naive.Stack]:
    kind = dice.choice(CELL_KINDS)
    seed, units = dice.randrange(10**6), dice.choice((1, 2, 3, 4, features))
    options = {"projection": dice.randrange(1, units + 1) if kind == "projection" else None, "bias": kind != "no bias"}
    layers: list[naive.Node] = []
    for k in range(dice.randrange(1, 4) if kind != "cell" else 1):
        one = wf.random_cell(features, units, seed + 2 * k, **options)
        both = kind in ("bidirectional", "from 1") and seed % 3
        layers.append(naive.Bidirectional(one, wf.random_cell(features, units, seed + 2 * k + 1, **options)) if both else one)
        features = one.width * (2 if both else 1)
    return kind, naive.Stack(tuple(layers))


def made(dice: random.Random, features: int, prefix: str) -> Made:
    kind, model = a_model(dice, features)
    if kind == "cell":
        tensors: Arrays = wf.torch_parameters(model.layers[0], "")  # type: ignore[arg-type]
    else:
        tensors = wf.torch_state_dict(model)
    if kind == "from 1":
        for k in reversed(range(len(model.layers))):
            tensors = {name.replace(f"_l{k}", f"_l{k + 1}"): value for name, value in tensors.items()}
    return Made(prefix, {prefix + name: np.ascontiguousarray(value) for name, value in tensors.items()}, model)


def with_weight(model: naive.Stack, name: str, change: Callable[[np.ndarray], np.ndarray]) -> naive.Stack:
    """The model with one of its weights changed, named without its prefix."""
    field = "input_kernel" if name.startswith("weight_ih") else "recurrent_kernel"
    number = int("".join(letter for letter in name.partition("_l")[2] if letter.isdigit()) or 0)
    layers = list(model.layers)
    layer = layers[number]
    if isinstance(layer, naive.Bidirectional):
        side = "backward" if name.endswith("_reverse") else "forward"
        cell = getattr(layer, side)
        layers[number] = replace(layer, **{side: replace(cell, **{field: change(getattr(cell, field).T).T})})
    else:
        assert isinstance(layer, naive.Cell)
        layers[number] = replace(layer, **{field: change(getattr(layer, field).T).T})
    return naive.Stack(tuple(layers))


def changed(dice: random.Random, found: Made) -> Made:
    """With one weight stored otherwise, a tensor added or a tensor lost: the model is another one, the same, or none."""
    name = dice.choice([name for name in found.tensors if "weight_" in name and "weight_hr" not in name])
    bare = name.removeprefix(found.prefix)
    rng = np.random.default_rng(dice.randrange(10**6))
    value, tensors, model = found.tensors[name], dict(found.tensors), found.model
    assert model is not None
    first = 1 if any("_l1" in key for key in tensors) and not any("_l0" in key for key in tensors) else 0
    plain = bare if not first else bare.replace(f"_l{bare.partition('_l')[2][0]}", f"_l{int(bare.partition('_l')[2][0]) - 1}")
    match dice.randrange(9):
        case 0:  # weight dropout
            tensors |= {name: value * 2, f"{name}_raw": value}
        case 1 | 2:  # weight_norm
            g = rng.uniform(0.5, 2, (len(value), 1)).astype("f4")
            keys = (f"{name}_g", f"{name}_v") if rng.random() < 0.5 else parametrized(found.prefix, bare)
            del tensors[name]
            tensors |= dict(zip(keys, (g, value), strict=True))
            norms = np.sqrt((value.astype("f8") ** 2).sum(1, keepdims=True))
            model = with_weight(model, plain, lambda weight: weight * (g / norms))
        case 3 | 4:  # pruned
            mask = (rng.random(value.shape) < 0.7).astype("f4")
            pruned = rng.random() < 0.5
            if pruned:
                tensors[f"{name}_orig"] = tensors.pop(name)
            tensors[f"{name}_mask"] = mask
            model = with_weight(model, plain, lambda weight: weight * mask)
        case 5:  # something else that may change it
            rest = dice.choice(["_scale", "_log_scale", "_alpha", ".lora_B", "_delta"])
            tensors[name + rest] = np.ones(dice.choice([(), (1,), value.shape]), "f4")
            model = None
        case 6:  # a norm, or a weight of its own
            tensors[f"{found.prefix}{dice.choice(['ln', 'layer_norm', 'norm_ih', 'bn1'])}.weight"] = np.ones(len(value), "f4")
            model = None
        case 7:  # a tensor is lost
            del tensors[dice.choice(list(tensors))]
            model = None
        case _:  # a shape that does not fit
            tensors[name] = np.ones((len(value) + dice.choice((1, 4)), value.shape[1]), "f4")
            model = None
    return Made(found.prefix, tensors, model, touched=True)


def parametrized(prefix: str, name: str) -> tuple[str, str]:
    return f"{prefix}parametrizations.{name}.original0", f"{prefix}parametrizations.{name}.original1"


def others(dice: random.Random) -> Arrays:
    """What else a state dict holds."""
    rng = np.random.default_rng(dice.randrange(10**6))
    known = {
        "embedding.weight": (9, 4), "head.weight": (3, 5), "head.bias": (3,), "conv.0.weight": (4, 3, 2), "scaler": (),
        "gru.weight_ih_l0": (9, 4), "gru.weight_hh_l0": (9, 3), "rnn_tanh.weight_hh_l0": (3, 3), "bn.running_mean": (4,),
        "optimizer.state.0.exp_avg": (20, 4), "norm.weight": (4,), "lstm_head.weight": (4, 4), "pos.emb": (1, 7, 4),
    }  # fmt: skip
    return {name: rng.normal(size=known[name]).astype("f4") for name in dice.sample(sorted(known), dice.randrange(5))}


def write(dice: random.Random, folder: Path, tensors: Arrays) -> Path:
    """In any of the containers, in any order."""
    names = list(tensors)
    dice.shuffle(names)
    tensors = {name: np.array(tensors[name], order="C") for name in names}
    pickled = wf.p_dict((name, wf.p_array(str(k), value)) for k, (name, value) in enumerate(tensors.items()))
    if dice.random() < 0.4:
        beside = wf.p_object("argparse.Namespace", wf.p_dict([("lr", wf.p_int(1))]))
        pickled = wf.p_dict([("epoch", wf.p_int(1)), ("args", beside), ("weights", pickled)])
    match dice.randrange(3):
        case 0:
            return wf.write_safetensors(folder / "m", tensors)
        case 1:
            return wf.write_pt(folder / "m", pickled, {str(k): value.tobytes() for k, value in enumerate(tensors.values())})
    return wf.write_legacy(folder / "m", pickled, {str(k): value for k, value in enumerate(tensors.values())})


def close(got: naive.Node, want: naive.Node, features: int) -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, features))
    lengths = np.array([3, 2])
    found, expected = naive.run(got, x, lengths), naive.run(want, x, lengths)
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-6)
    assert found[1].keys() == expected[1].keys()
    for name, state in expected[1].items():
        np.testing.assert_allclose(found[1][name], state, rtol=0, atol=1e-6, err_msg=name)


def one_file(seed: int, folder: Path) -> str:
    """What came of it: right, or refused. AssertionError: anything else, or a refusal of what should be read."""
    dice = random.Random(seed)
    features = dice.choice((3, 4))
    prefixes = ["".join(f"{part}." for part in dice.sample(PARTS, dice.randrange(4))) for _ in range(2)]
    first = made(dice, features, prefixes[0])
    if dice.random() < 0.5:
        first = changed(dice, first)
    lstms = [first]
    # A name that is all of another's begin or end would mean both.
    apart = not any(one.startswith(other) or one.endswith(f".{other}") for one, other in (prefixes, prefixes[::-1]))
    if dice.random() < 0.4 and apart:
        width = naive.run(first.model, np.ones((1, 1, features)))[0].shape[2] if first.model else features
        lstms.append(made(dice, width, prefixes[1]))
    tensors = others(dice) if all(one.prefix for one in lstms) else {}  # what stands below an LSTM's own name is refused
    for one in lstms:
        tensors |= one.tensors
    path = write(dice, folder, tensors)
    select = () if len(lstms) == 1 or dice.random() < 0.2 else tuple(one.prefix.rstrip(".") for one in lstms)
    models = [one.model for one in lstms]
    want = naive.Stack(tuple(layer for model in models if model for layer in model.layers))
    try:
        got = tree(path, select=select)
    except LstmcliError as error:
        text = str(error)
        assert "\n" not in text
        assert len(text) < 3000
        assert None in models or (len(lstms) == 2 and not select), text
        return "refused"
    assert None not in models, "read what cannot be known"
    assert len(lstms) == 1 or select, "one of two was chosen"
    close(got, want, features)
    assert all(tensor.name not in first.tensors for tensor in load(path, select=select).left_out) or first.touched
    return "right"


def many(seeds: range, folder: Path) -> None:
    came = [one_file(seed, folder) for seed in seeds]
    assert came.count("right") > len(came) // 3
    assert came.count("refused") > len(came) // 10


def test_some(tmp_path: Path) -> None:
    many(range(400), tmp_path)


@pytest.mark.slow
def test_thousands(tmp_path: Path) -> None:
    many(range(1000, 3000), tmp_path)
