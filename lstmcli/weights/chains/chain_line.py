"""The line that says the graph which a state_dict does not hold: "embedding, lstm, final, fc1, relu, fc2".

A word is a module of the file (the prefix of its tensors), a function (`relu`, `leaky_relu(0.01)`, `softmax`, ...), or what
makes one vector of a sequence: `final`, `last`, `mean`, `max`, `sum`. What a module is shows in its tensors; what they leave
open is said in brackets, `conv1(stride=2, padding=1)`, or assumed as PyTorch does by default, and said.
"""

import ast
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lstmcli.blocks import Floats
from lstmcli.errors import DataError, UsageError, shown
from lstmcli.model.chain import Chain
from lstmcli.model.layers import (
    ALPHAS,
    OVER_FEATURES,
    POINTWISE,
    POOLS,
    Activation,
    Affine,
    Attention,
    Conv1D,
    Dense,
    Embedding,
    Flip,
    Layer,
    LayerNorm,
    Pool,
    Pool1D,
)
from lstmcli.model.tree import Model
from lstmcli.weights.containers.tensor import Tensor
from lstmcli.weights.pytorch import NORM

EPSILON = 1e-5  # of torch.nn.LayerNorm and BatchNorm1d, unless they are told another one
PARTS = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}  # of the modules that are known
OVER_BATCH = re.compile(r"(^|[._])(bn|batch|gn|group|inst)", re.IGNORECASE)  # names of norms over more than the features
NOTHING = ("dropout", "identity")
ATTENTION = "attention"
POOLED = {"max_pool": "max", "avg_pool": "mean"}
WORD = re.compile(r"\s*([^\s,()]+)\s*(?:\(([^()]*)\))?\s*(?:,|$)")
MANY = 12
PLAIN = (
    "save what the module computes with as a plain weight (for PyTorch's own forms: remove_parametrizations, "
    "remove_weight_norm, prune.remove)"
)
TRIES = 10_000  # orders of modules: as many as there are of seven, and all that shapes leave open in a model of many widths


class Word(NamedTuple):
    name: str
    values: tuple[float, ...]  # in brackets, without names
    named: dict[str, float]
    inner: str = ""  # the text in the brackets of attention(...), which are words

    def __str__(self) -> str:
        return shown(self.name)

    def expect(self, *names: str, values: int = 0) -> None:
        """Raise UsageError where the brackets hold other names, or more numbers without a name."""
        if len(self.values) > values or not set(self.named) <= set(names):
            given = [*(f"{value:g}" for value in self.values), *(f"{name}={value:g}" for name, value in self.named.items())]
            takes = f"takes {', '.join(f'{name}=...' for name in names)}" if names else "takes no number"
            raise UsageError(f"--chain: {self} {takes}, got {self}({shown(', '.join(given))})")

    def whole(self, name: str, default: int) -> int:
        """Return the whole number that a name in the brackets has."""
        value = self.named.get(name, default)
        if value % 1:
            raise UsageError(f"--chain: {self}({name}={value:g}): expected a whole number")
        return int(value)


def parse(line: str) -> list[Word]:
    """Return the words of a line. Raises UsageError where it is none."""
    words, at = [], 0
    while at < len(line):
        match = WORD.match(line, at)
        if not match:
            raise UsageError(
                f"--chain: expected names separated by commas, as in 'lstm, final, fc, softmax', got {line[at:]!r}"
            )
        name, text = match.groups()
        words.append(Word(name, (), {}, text or "") if name == ATTENTION else Word(name, *arguments(name, text)))
        at = match.end()
    if not words:
        raise UsageError("--chain: expected names of modules and functions, got none")
    return words


def arguments(name: str, text: str | None) -> tuple[tuple[float, ...], dict[str, float]]:
    try:
        call = ast.parse(f"f({text or ''})", mode="eval").body
        assert isinstance(call, ast.Call)
        values = tuple(number(value) for value in call.args)
        return values, {str(word.arg): number(word.value) for word in call.keywords}
    except (SyntaxError, ValueError, AssertionError) as error:
        raise UsageError(f"--chain: {name}({text}): expected numbers, as in leaky_relu(0.01) or conv(stride=2)") from error


def number(node: ast.expr) -> float:
    value = ast.literal_eval(node)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(value)
    return value


def build(
    line: str, tensors: Sequence[Tensor], read_lstm: Callable[[str], Model], where: str, takes_ids: bool | None
) -> tuple[Chain, list[str], list[Tensor]]:
    """Return the chain that a line says, what was assumed, and the tensors that it leaves out.

    read_lstm: gives the LSTM whose tensors have a prefix. takes_ids: whether the input is token ids; None: not known.
    Raises UsageError for a line that does not fit the file, DataError for tensors that make no layer.
    """
    builder = Builder(tensors, read_lstm, where, takes_ids)
    for word in parse(line):
        builder.add(word)
    if not builder.layers:
        raise UsageError("--chain: expected at least one layer, got none")
    left_out = [tensor for tensor in tensors if tensor.name.rpartition(".")[0] not in builder.used]
    try:
        return Chain(tuple(builder.layers), tuple(builder.names)), builder.assumed, left_out
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


class Builder:
    def __init__(
        self, tensors: Sequence[Tensor], read_lstm: Callable[[str], Model], where: str, takes_ids: bool | None
    ) -> None:
        self.read_lstm, self.where, self.takes_ids = read_lstm, where, takes_ids
        self.modules = modules_of(tensors)
        self.layers: list[Layer | Model] = []
        self.names: list[str] = []
        self.used: set[str] = set()
        self.assumed: list[str] = []

    def add(self, word: Word) -> None:
        if word.inner:  # of which the module may be called attention, too
            layer: Layer | Model = self.attention(parse(word.inner))
        elif name := self.resolve(word):
            self.used.add(name)
            try:
                layer = self.module(word._replace(name=name), self.modules[name])
            except DataError as error:
                text = str(error)
                raise DataError(text if text.startswith(self.where) else f"{self.where}: {word}: {text}") from error
        elif word.name in NOTHING:
            return
        else:
            try:
                made = function(word)
            except DataError as error:
                raise UsageError(f"--chain: {word}: {error}") from error
            if made is None:
                raise UsageError(f"--chain: {word} is no module of {self.where} and no function; {self.known()}")
            layer = made
        self.layers.append(layer)
        self.names.append(word.name)

    def attention(self, words: list[Word]) -> Layer:
        """Return the attention whose scores a linear module with one output gives: attention(fc), attention(tanh, fc)."""
        *before, last = words
        for word in words:
            word.expect()
        name = self.resolve(last)
        parts = self.modules[name] if name else {}
        shape = parts["weight"].shape if "weight" in parts else ()
        if name is None or shape[:1] != (1,) or len(shape) != 2 or [word.name for word in before] not in ([], ["tanh"]):
            raise UsageError(
                "--chain: attention(...): expected a linear module with one output, as in attention(fc), or tanh before it, as "
                f"in attention(tanh, fc); {last} has {f'weights {shape}' if name else 'none'}; other scores are not known"
            )
        refuse_others(parts)
        self.used.add(name)
        bias = float(parts["bias"].array(rank=1)[0]) if "bias" in parts else 0.0
        return Attention(parts["weight"].array(rank=2)[0], bias, before[0].name if before else "linear")

    def resolve(self, word: Word) -> str | None:
        """Return the whole name of a module, of which the word may leave out what a checkpoint puts before all of them."""
        if word.name in self.modules:
            return word.name
        fitting = [name for name in self.modules if name.endswith(f".{word.name}")]
        if len(fitting) > 1:
            raise UsageError(f"--chain: {word} may be {' or '.join(map(shown, fitting))} of {self.where}; give the whole name")
        return fitting[0] if fitting else None

    def known(self) -> str:
        listed = ", ".join(map(shown, list(self.modules)[:MANY])) or "none"
        more = f" and {len(self.modules) - MANY} more" if len(self.modules) > MANY else ""
        functions = ", ".join((*POOLS, f"{ATTENTION}(...)", *OVER_FEATURES, *POINTWISE, *POOLED))
        return f"modules: {listed}{more}; functions: {functions}"

    def module(self, word: Word, parts: dict[str, Tensor]) -> Layer | Model:
        if is_lstm(parts):
            word.expect()
            return self.read_lstm(word.name)
        weight = parts.get("weight")
        if weight is None:
            raise DataError(f"expected a weight, got {', '.join(map(shown, parts))}; {PLAIN}")
        refuse_others(parts)
        bias = parts["bias"].array(rank=1) if "bias" in parts else None
        match len(weight.shape):
            case 1:
                return self.per_feature(word, parts, weight.array(rank=1), bias)
            case 2 if bias is None and self.is_embedding(word, weight):
                word.expect()
                return Embedding(weight.array(rank=2))
            case 2:
                word.expect()
                return Dense(weight.array(rank=2).T, bias)
            case 3:
                return self.convolution(word, weight.array(rank=3), bias)
        raise DataError(f"{weight}: no layer that is known has a weight of this rank")

    def is_embedding(self, word: Word, weight: Tensor) -> bool:
        if self.layers:
            return False
        return "emb" in word.name.lower() or bool(self.takes_ids)

    def per_feature(self, word: Word, parts: dict[str, Tensor], weight: Floats, bias: Floats | None) -> Layer:
        epsilon = word.named.get("eps", EPSILON)
        if "running_mean" not in parts and bias is None:
            word.expect()
            if len(weight) == 1:  # of all features, however many
                return Activation("leaky_relu", float(weight[0]))
            if NORM.search(word.name):
                raise DataError(
                    "a norm without a bias: an RMSNorm, which is not known to this program, or LayerNorm(bias=False), which is "
                    "read with a bias of zeros in the file"
                )
            self.assumed.append(f"{word}: a PReLU, whose weight has a slope for each feature")
            return Activation("prelu", slopes=weight)
        word.expect("eps")
        if "eps" not in word.named:
            kind = "BatchNorm" if "running_mean" in parts else "LayerNorm"
            self.assumed.append(f"{word}: {kind}, eps {EPSILON}, PyTorch's default ({word}(eps=...) in the chain says another)")
        if "running_mean" not in parts:
            if OVER_BATCH.search(word.name):
                raise DataError(
                    "a norm without running_mean, which is not a LayerNorm by its name; one over a batch, a group of features "
                    "or the steps is not known to this program"
                )
            return LayerNorm(len(weight), weight, bias, epsilon)
        mean, variance = (parts[name].array(rank=1).astype(np.float64) for name in ("running_mean", "running_var"))
        scale = weight / np.sqrt(variance + epsilon)
        return Affine(scale, (0 if bias is None else bias) - mean * scale)

    def convolution(self, word: Word, weight: Floats, bias: Floats | None) -> Layer:
        told = {name: word.whole(name, default) for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))}
        word.expect(*told)
        if set(word.named) < set(told):
            self.assumed.append(
                f"{word}: Conv1d, stride {told['stride']}, padding {told['padding']} of zeros, dilation {told['dilation']} "
                f"({word}(stride=..., padding=..., dilation=...) in the chain says others)"
            )
        pad = told.pop("padding")
        return Conv1D(size=weight.shape[2], padding=(pad, pad), kernel=weight.transpose(2, 1, 0), bias=bias, **told)


def refuse_others(parts: dict[str, Tensor]) -> None:
    """Raises DataError for what a module has beside its own weights: without it, it computes something else."""
    if others := [str(tensor) for name, tensor in parts.items() if name not in PARTS]:
        raise DataError(f"{', '.join(others[:MANY])}: beside the weight, and no part of a layer that is known; {PLAIN}")


def modules_of(tensors: Sequence[Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each module by their own names, in the order of the file."""
    modules: dict[str, dict[str, Tensor]] = {}
    for tensor in tensors:
        prefix, _, own = tensor.name.rpartition(".")
        if prefix:
            modules.setdefault(prefix, {})[own] = tensor
    return modules


def function(word: Word) -> Layer | None:
    """Return the layer of a function's name; None: it is none."""
    if word.name in POOLS:
        word.expect()
        return Pool(word.name)
    if word.name == "flip":
        word.expect()
        return Flip()
    if word.name in POOLED:
        word.expect("size", "stride", "padding", values=1)
        if word.values:
            word = word._replace(named={"size": word.values[0]} | word.named)
        size, padding = word.whole("size", 2), word.whole("padding", 0)
        stride = word.whole("stride", size)
        return Pool1D(size, stride, padding=(padding, padding), function=POOLED[word.name], count_padding=True)
    if word.name in (*POINTWISE, *OVER_FEATURES) and word.name != "prelu":
        if word.name in ALPHAS:
            word.expect("alpha", values=1)
        else:
            word.expect()
        alpha = word.values[0] if word.values else word.named.get("alpha")
        return Activation(word.name, alpha)
    return None


def proposal(tensors: Sequence[Tensor]) -> str:
    """Return the line that names and shapes suggest, for whoever has to write it: its activations are in no file."""
    modules = {name: parts for name, parts in modules_of(tensors).items() if widths(name, parts)}
    tried = itertools.islice(orders(modules, [], None), TRIES) if len(modules) <= MANY else ()
    names = next((order for order in tried if len(order) == len(modules)), list(modules)[:MANY])
    lstms = [place for place, name in enumerate(names) if is_lstm(modules[name])]
    if lstms:
        names.insert(lstms[-1] + 1, "final")
    parents = [name.split(".")[:-1] for name in modules]
    shared = sum(1 for _ in itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*parents, strict=False)))
    more = ["..."] if len(modules) > MANY else []
    return ", ".join([*(name.split(".", shared)[-1] for name in names), *more])


def orders(modules: dict[str, dict[str, Tensor]], before: list[str], width: int | None) -> Iterator[list[str]]:
    """Yield the orders of some modules or all in which each takes what the one before puts out, and those that begin them."""
    yield before
    for name, parts in modules.items():
        takes, gives = widths(name, parts) or (None, None)
        if name not in before and (width is None or takes == width) and (takes is not None or not before):
            yield from orders(modules, [*before, name], gives)


def is_lstm(parts: dict[str, Tensor]) -> bool:
    return "weight_ih_l0" in parts or "weight_ih" in parts


def widths(name: str, parts: dict[str, Tensor]) -> tuple[int | None, int] | None:
    """Return how many features a module takes (None: token ids) and puts out; None for what is no module of a chain."""
    if is_lstm(parts):
        top = max((name for name in parts if name.startswith("weight_hh")), default="")
        if top not in parts or len(parts[top].shape) != 2:
            return None
        taken = parts.get("weight_ih_l0", parts.get("weight_ih"))
        width = parts[top].shape[1] if "weight_hr_l0" not in parts else parts["weight_hr_l0"].shape[0]
        return taken.shape[-1] if taken else None, width * (2 if any(part.endswith("_reverse") for part in parts) else 1)
    shape = parts["weight"].shape if "weight" in parts else ()
    match len(shape):
        case 1:
            return shape[0], shape[0]
        case 2:
            embedding = "bias" not in parts and "emb" in name.lower()
            return (None, shape[1]) if embedding else (shape[1], shape[0])
        case 3:
            return shape[1], shape[0]
    return None
