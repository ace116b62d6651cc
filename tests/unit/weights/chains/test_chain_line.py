"""--chain: a line of names makes of a state_dict the model that PyTorch trained, or says what is wrong with the line."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from lstmcli.engine.chains.prepared_chain import PreparedChain
from lstmcli.errors import LstmcliError, UsageError
from lstmcli.files.file_kind import open_by_kind
from lstmcli.model.chain import Chain
from lstmcli.model.layers import Activation, Affine, Conv1D, Dense, Embedding, LayerNorm, Pool, Pool1D
from lstmcli.model.new_weights import init_model
from lstmcli.model.tree import Model
from lstmcli.weights import pytorch
from lstmcli.weights.chains import chain_line
from lstmcli.weights.containers import safetensors
from lstmcli.weights.containers.tensor import Tensor
from lstmcli.weights.draft import Choices

MODELS = Path(__file__).parents[3] / "data" / "models"
NAMES = sorted(path.stem for path in MODELS.glob("torch_*.npz"))


def tensors_of(path: Path) -> list[Tensor]:
    """The tensors of a file, in memory."""
    with open_by_kind(str(path)) as (file, _):
        read = [(tensor, tensor.read().reshape(tensor.shape)) for tensor in safetensors.read_tensors(file)]
    return [Tensor(tensor.name, tensor.shape, tensor.dtype, lambda values=values: values) for tensor, values in read]


def fake(**shapes: tuple[int, ...]) -> list[Tensor]:
    """Tensors named fc__weight for fc.weight."""
    rng = np.random.default_rng(0)
    return [
        Tensor(name.replace("__", "."), shape, "F32", partial(np.asarray, rng.normal(size=shape).astype(np.float32)))
        for name, shape in shapes.items()
    ]


def lstm_of(tensors: list[Tensor]) -> Callable[[str], Model]:
    return lambda prefix: pytorch.import_tensors("PyTorch", "w.pt", tensors, Choices(select=(prefix,))).model


def build(line: str, tensors: list[Tensor], takes_ids: bool | None = None) -> Chain:
    return chain_line.build(line, tensors, lstm_of(tensors), "w.pt", takes_ids)[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lengths", ["lens", "full"])
def test_models_of_pytorch(name: str, lengths: str) -> None:
    with np.load(MODELS / f"{name}.npz") as file:
        x, line = file["x"], str(file["chain"])
        lens = file["lens"] if lengths == "lens" else np.full(len(x), x.shape[1])
        want = file["predictions" if lengths == "lens" else "predictions_full"]
    ids = x.dtype.kind in "iu"
    chain = build(line, tensors_of(MODELS / f"{name}.safetensors"), ids)
    rows = np.concatenate([row[:length] for row, length in zip(x, lens, strict=True)])
    rows = rows[:, None].astype(np.int64) if ids else rows
    got, counts = PreparedChain(chain, np.dtype(np.float32), 1)(rows, lens.astype(np.int64))
    if chain.has_steps:
        assert counts.tolist() == lens.tolist()
        want = np.concatenate([row[:length] for row, length in zip(want, lens, strict=True)])
    assert np.abs(got - want).max() <= 3e-6


@pytest.mark.parametrize("name", NAMES)
def test_a_proposal_has_all_modules_in_an_order_that_fits(name: str) -> None:
    with np.load(MODELS / f"{name}.npz") as file:
        line = str(file["chain"])
    tensors = tensors_of(MODELS / f"{name}.safetensors")
    proposed = chain_line.proposal(tensors).split(", ")
    modules = chain_line.modules_of(tensors)
    assert [word for word in proposed if word in modules] == [word for word in line.split(", ") if word in modules]
    build(", ".join(proposed), tensors)


@pytest.mark.parametrize("count", [12, 13, 30_000])
def test_a_proposal_takes_no_time_where_no_order_fits(count: int) -> None:
    alike = {f"fc{k}__weight": (4, 4) for k in range(count - 1)}
    began = time.process_time()
    proposed = chain_line.proposal(fake(**alike, odd__weight=(2, 3))).split(", ")
    assert time.process_time() - began < 20
    assert len(proposed) == min(count, 13)
    assert (proposed[-1] == "...") == (count > 12)


def test_what_a_module_is_shows_in_its_tensors() -> None:
    tensors = fake(
        emb__weight=(9, 4), conv__weight=(5, 4, 3), conv__bias=(5,), bn__weight=(5,), bn__bias=(5,), bn__running_mean=(5,),
        bn__running_var=(5,), slope__weight=(1,), ln__weight=(5,), ln__bias=(5,), fc__weight=(2, 5), fc__bias=(2,),
    )  # fmt: skip
    line = "emb, conv(stride=2), bn, slope, max_pool(2), ln(eps=0.1), dropout, mean, fc, leaky_relu(0.2), softmax"
    chain, assumed, left_out = chain_line.build(line, tensors, lstm_of(tensors), "w.pt", True)
    kinds = [Embedding, Conv1D, Affine, Activation, Pool1D, LayerNorm, Pool, Dense, Activation, Activation]
    assert [type(layer) for layer in chain.layers] == kinds
    assert chain.layers[1].stride == 2
    slope = next(tensor for tensor in tensors if tensor.name == "slope.weight").array(rank=1)
    assert (chain.layers[3].function, chain.layers[3].alpha) == ("leaky_relu", slope[0])
    assert chain.layers[5].epsilon == 0.1
    assert chain.layers[8].alpha == 0.2
    assert [sentence.split(":")[0] for sentence in assumed] == ["conv", "bn"]
    assert left_out == []


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("fc", r"fc.lora_A \(2, 4\), fc.lora_B \(4, 2\): beside the weight"),
        ("masked", r"masked.weight_mask .* beside the weight"),
        ("attention(score)", "score.scale .* beside the weight"),
        ("weighed", "expected a weight, got weight_g, weight_v; save what the module computes with as a plain weight"),
        ("post_norm", "a norm without a bias: an RMSNorm"),
        ("bn", "a norm without running_mean"),
        ("layers.group_norm", "a norm without running_mean"),
    ],
)
def test_a_module_that_computes_something_else_is_refused(line: str, told: str) -> None:
    """Left out, these would give the numbers of another model."""
    tensors = fake(
        fc__weight=(4, 4), fc__lora_A=(2, 4), fc__lora_B=(4, 2), masked__weight=(4, 4), masked__weight_mask=(4, 4),
        score__weight=(1, 4), score__scale=(), weighed__weight_g=(4, 1), weighed__weight_v=(4, 4), post_norm__weight=(4,),
        bn__weight=(4,), bn__bias=(4,), layers__group_norm__weight=(4,), layers__group_norm__bias=(4,),
    )  # fmt: skip
    with pytest.raises(LstmcliError, match=told):
        build(line, tensors, takes_ids=False)


def test_what_shapes_leave_open_is_told() -> None:
    tensors = fake(act__weight=(4,), ln__weight=(4,), ln__bias=(4,), conv__weight=(4, 4, 1))
    _, assumed, _ = chain_line.build("act, ln, conv", tensors, lstm_of(tensors), "w.pt", False)
    assert [sentence.split(", ")[0] for sentence in assumed] == ["act: a PReLU", "ln: LayerNorm", "conv: Conv1d"]


@pytest.mark.parametrize("slope", [0.25, -0.7, 3.0, 0.1])
@pytest.mark.parametrize("line", ["slope, fc", "max, slope, fc", "fc, slope"])
def test_a_lone_slope_is_that_of_all_features(line: str, slope: float) -> None:
    """nn.PReLU() has one slope however many features there are, also where no layer before it says how many."""
    tensors = fake(fc__weight=(4, 4), slope__weight=(1,))
    alone = Tensor("slope.weight", (1,), "F32", lambda: np.full(1, slope, np.float32))
    each = Tensor("slope.weight", (4,), "F32", lambda: np.full(4, slope, np.float32))
    x = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
    x[0, :3] = 0.0, -0.0, np.nan
    for dtype in (np.float32, np.float64):
        got, want = (
            PreparedChain(build(line, [tensors[0], one], takes_ids=False), np.dtype(dtype), 1)(
                x.astype(dtype), np.array([2, 4], np.int64)
            )[0]
            for one in (alone, each)
        )
        assert got.tobytes() == want.tobytes()


def test_the_first_matrix_without_a_bias_is_a_table_for_ids_and_a_layer_for_numbers() -> None:
    tensors = fake(words__weight=(4, 4), fc__weight=(2, 4))
    assert isinstance(build("words, mean, fc", tensors, takes_ids=True).layers[0], Embedding)
    assert isinstance(build("words, mean, fc", tensors, takes_ids=False).layers[0], Dense)


def test_tensors_that_the_line_leaves_out_are_told() -> None:
    tensors = fake(fc__weight=(2, 4), fc__bias=(2,), other__weight=(3, 3))
    _, _, left_out = chain_line.build("fc", tensors, lstm_of(tensors), "w.pt", False)
    assert [tensor.name for tensor in left_out] == ["other.weight"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "expected names of modules"),
        ("fc,, relu", "expected names separated by commas"),
        ("fc1, relu", "fc1 is no module of w.pt and no function; modules: fc"),
        ("fc, relu(0.1)", "relu takes no number"),
        ("fc, softmax(dim=1)", "softmax takes no number, got softmax(dim=1)"),
        ("fc, leaky_relu(negative_slope=0.2)", "leaky_relu takes alpha=..., got leaky_relu(negative_slope=0.2)"),
        ("fc, elu(1, 2)", "elu takes alpha=..., got elu(1, 2)"),
        ("fc, max_pool(kernel_size=3)", "max_pool takes size=..., stride=..., padding=..., got max_pool(kernel_size=3)"),
        ("fc, max_pool(2, 1)", "got max_pool(2, 1)"),
        ("fc, max_pool(2.5)", "max_pool(size=2.5): expected a whole number"),
        ("fc, avg_pool(0)", "--chain: avg_pool: size: expected"),
        ("fc, last(1)", "last takes no number"),
        ("fc, flip(1)", "flip takes no number"),
        ("fc(3)", "fc takes no number"),
        ("conv(2)", "conv takes stride=..., padding=..., dilation=..., got conv(2)"),
        ("conv(strides=2)", "conv takes stride=..., padding=..., dilation=..., got conv(strides=2)"),
        ("conv(stride=1e999)", "conv(stride=inf): expected a whole number"),
        ("norm(epsilon=1e-3)", "norm takes eps=..., got norm(epsilon=0.001)"),
        ("lstm(2)", "lstm takes no number"),
        ("lstm, attention(score(2))", "expected"),
        ("fc, leaky_relu(__import__('os').getpid())", "expected names separated by commas"),
        ("fc, leaky_relu(x)", "expected numbers"),
        ("fc, final", "expected one right before it"),
        ("fc, fc", "takes 4 features, got 2"),
        ("odd", "expected a weight, got strange"),
    ],
)
def test_lines_that_are_wrong(line: str, words: str) -> None:
    tensors = fake(fc__weight=(2, 4), odd__strange=(3,), conv__weight=(4, 4, 3), norm__weight=(4,), norm__bias=(4,))
    tensors += fake(lstm__weight_ih_l0=(12, 2), lstm__weight_hh_l0=(12, 3), score__weight=(1, 3))
    with pytest.raises(LstmcliError) as caught:
        build(line, tensors, takes_ids=False)
    assert words in str(caught.value)


def test_final_needs_an_lstm_and_takes_its_state() -> None:
    lstm = init_model(4, [3], bidirectional=True)
    assert Chain((lstm, Pool("final")), ("lstm", "final")).output_size == 6
    with pytest.raises(UsageError):
        chain_line.parse("lstm(")


@pytest.mark.parametrize("function", ["linear", "tanh"])
def test_attention_weighs_the_steps_by_the_scores_of_a_module(function: str) -> None:
    tensors = fake(lstm__weight_ih_l0=(12, 2), lstm__weight_hh_l0=(12, 3), attention__weight=(1, 3), attention__bias=(1,))
    words = "attention" if function == "linear" else "tanh, attention"
    chain = build(f"lstm, attention({words})", tensors)
    assert chain_line.build(f"lstm, attention({words})", tensors, lstm_of(tensors), "w.pt", None)[2] == []
    (lstm, _), (weight, bias) = chain.layers, (tensors[2].array(2)[0], float(tensors[3].array(1)[0]))
    assert isinstance(lstm, Model)
    x = np.random.default_rng(1).normal(size=(2, 7, 2))
    lengths = np.array([7, 3])
    outputs, _ = lstm(x, lengths)
    packed = np.concatenate([row[:length] for row, length in zip(x, lengths, strict=True)])
    got, _ = PreparedChain(chain, np.dtype(np.float64), 1)(packed, lengths)
    for row, length in enumerate(lengths):
        h = outputs[row, :length]
        scores = np.exp((np.tanh(h) if function == "tanh" else h) @ weight + bias)
        np.testing.assert_allclose(got[row], scores / scores.sum() @ h, rtol=1e-12)


@pytest.mark.parametrize(
    ("words", "told"),
    [("fc", r"fc has weights \(2, 3\)"), ("relu, one", "other scores"), ("one, tanh", "tanh has none"), ("", "is no module")],
)
def test_other_attention_is_refused(words: str, told: str) -> None:
    tensors = fake(fc__weight=(2, 3), one__weight=(1, 3))
    with pytest.raises(UsageError, match=told):
        build(f"attention({words})", tensors)
