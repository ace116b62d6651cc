"""What operators compute of each row by itself, and which layer that is: a function is known by what it gives.

Exporters write one activation in many ways: a SiLU is Mul and Sigmoid, a GELU is Div, Erf, Add and two Mul, a normalisation
may be one operator or eight. So operators on rows are put together to functions, and these are tried on numbers, small ones
and large ones, against all that layers compute (model/layers.py).
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstmcli.errors import DataError
from lstmcli.model.layers import Activation, Affine, Layer, LayerNorm
from lstmcli.weights.onnx_graph.graph import Node

Rows = NDArray[Any]  # (rows, width), float64, or bool for a condition
RowFunction = Callable[[Rows], Rows]

CLOSE = 3e-7  # of the largest of 1 and the value; graphs hold constants such as 1/6 and sqrt(2) in float32
NOISE = 1e-10  # of a number from which it is taken away again
SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805


@dataclass(eq=False)
class Expression:
    """What an operator gives for each row: (rows, width), of arguments likewise. compute None: the rows themselves."""

    operator: str
    name: str  # of its node
    width: int
    compute: Callable[..., Rows] | None = None
    arguments: "tuple[Expression | Rows, ...]" = ()

    def operands(self) -> "list[Expression]":
        return [argument for argument in self.arguments if isinstance(argument, Expression)]


def evaluate(expression: Expression, variable: Expression, rows: Rows) -> Rows:
    """Return what the expression gives where the variable, a part of it, is `rows`."""
    known = {variable: rows}
    for part in in_order(expression, variable):
        assert part.compute
        arguments = (known[one] if isinstance(one, Expression) else one for one in part.arguments)
        known[part] = part.compute(*arguments)
    return known[expression]


def in_order(expression: Expression, variable: Expression) -> Iterator[Expression]:
    """Yield the parts of an expression above a variable, each after those that it is computed of."""
    done, pending = {variable}, [expression]
    while pending:
        missing = [part for part in pending[-1].operands() if part not in done]
        if missing and pending[-1] not in done:
            pending += missing
            continue
        part = pending.pop()
        if part not in done:
            done.add(part)
            yield part


def layers_of(expression: Expression, rows: Expression) -> list[tuple[str, Layer]]:
    """Return the layers, each with the name of its last operator, that compute an expression of `rows`. Raises DataError."""
    found: list[tuple[str, Layer]] = []
    while expression is not rows:
        for part in [rows, *in_order(expression, rows)]:
            if part is expression:
                nodes = ", ".join(dict.fromkeys(f"{one.operator} {one.name!r}" for one in in_order(expression, rows)))
                raise DataError(f"what is computed by {nodes} is no function that is known to this program")
            if part.width == expression.width and rows not in in_order(expression, part):
                layer = known_layer(functools.partial(evaluate, expression, part), part.width)
                if layer is not None:
                    found += [(expression.name, layer)] * (layer is not IDENTITY)
                    expression = part
                    break
    return found[::-1]


IDENTITY = Activation("linear")


def known_layer(function: RowFunction, width: int) -> Layer | None:
    """Return the layer that computes a function of rows of this width, IDENTITY where it does nothing, None for none."""
    rows = samples(width)
    with np.errstate(all="ignore"):
        given = function(rows)
        if given.shape != rows.shape or given.dtype.kind != "f":
            return None

        def same(known: Rows) -> bool:
            # Where numbers become infinite on the way, as exp(1000) does, nothing is to be seen.
            seen = np.isfinite(given) | (np.abs(rows) < 50)
            return bool((np.abs(given - known) <= CLOSE * np.maximum(1, np.abs(known)))[seen].all())

        if same(rows):
            return IDENTITY
        for name, pointwise in POINTWISE.items():
            if same(pointwise(rows)):
                return Activation(name)
        zero, one, minus, low = (function(np.full((1, width), x))[0] for x in (0.0, 1.0, -1.0, -1000.0))
        if width == 1 and bool((np.abs(given - zero) <= CLOSE + NOISE * np.abs(rows)).all()):  # one feature, normalised
            return Affine(np.zeros(1), zero)
        if same(rows * (one - zero) + zero):
            return Affine(one - zero, zero)
        slopes = -minus
        if same(np.where(rows < 0, rows * slopes, rows)):
            alike = bool((slopes == slopes[0]).all())
            return Activation("leaky_relu", float(slopes[0])) if alike else Activation("prelu", slopes=slopes)
        if same(np.where(rows < 0, -low * np.expm1(rows), rows)) and (low == low[0]).all():
            return Activation("elu", -float(low[0]))
        if same(softmax(rows)):
            return Activation("softmax")
        if same(log_softmax(rows)):
            return Activation("log_softmax")
        scale, epsilon = normalisation(rows, given - zero)
        if epsilon >= 0 and same(normalized(rows, epsilon) * scale + zero):
            shift, epsilon = single(zero), float(f"{epsilon:.6g}")
            return LayerNorm(width, None if (scale == 1).all() else scale, shift if shift.any() else None, epsilon)
    return None


def normalisation(rows: Rows, given: Rows) -> tuple[Rows, float]:
    """Return the scale of each feature and the epsilon with which a LayerNorm would give this, if it is one."""
    centred = rows - rows.mean(axis=1, keepdims=True)
    variance = (centred * centred).mean(axis=1)
    large, small = 0, int(variance.argmin())  # an epsilon is nothing to the first row
    scale = single(given[large] * np.sqrt(variance[large]) / centred[large])
    place = int(np.abs(centred[small] * scale).argmax())
    return scale, float((centred[small, place] * scale[place] / given[small, place]) ** 2 - variance[small])


def single(weights: Rows) -> Rows:
    """Return weights as the float32 that they were, where they are close to these."""
    rounded = weights.astype(np.float32)
    return rounded if np.allclose(rounded, weights, rtol=1e-8, atol=1e-8) else weights


def samples(width: int) -> Rows:
    """Return rows to try a function on, of numbers from 1e-3 to 1e30 and of both signs."""
    count = min(max((1 << 16) // width, 64), 1024)
    scales = np.concatenate([[1e6, 1e12, 1e30], np.geomspace(1e-3, 1e3, count - 3)])
    rows: Rows = np.random.default_rng(0).normal(size=(count, width)) * scales[:, None]
    return rows


def sigmoid(x: Rows) -> Rows:
    return np.asarray(1 / (1 + np.exp(-x)))


def softplus(x: Rows) -> Rows:
    return np.logaddexp(0, x)


def elu(x: Rows, alpha: float = 1.0) -> Rows:
    return np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x)


def selu(x: Rows, alpha: float = SELU_ALPHA, scale: float = SELU_SCALE) -> Rows:
    return elu(x, alpha) * scale


def erf(x: Rows) -> Rows:
    return np.asarray(np.vectorize(math.erf, [np.float64])(x))


def gelu(x: Rows) -> Rows:
    return np.asarray(x * (1 + erf(x * math.sqrt(0.5))) / 2)


def gelu_tanh(x: Rows) -> Rows:
    return np.asarray(x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2)


def hard_sigmoid(x: Rows, alpha: float = 1 / 6, beta: float = 0.5) -> Rows:
    return np.clip(alpha * x + beta, 0, 1)


def softmax(x: Rows) -> Rows:
    powers = np.exp(x - x.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def log_softmax(x: Rows) -> Rows:
    shifted = x - x.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def normalized(x: Rows, epsilon: float) -> Rows:
    centred = x - x.mean(axis=1, keepdims=True)
    return np.asarray(centred / np.sqrt((centred * centred).mean(axis=1, keepdims=True) + epsilon))


# The activations of model/layers.py that have no number of their own.
POINTWISE: dict[str, RowFunction] = {
    "tanh": np.tanh, "sigmoid": sigmoid, "relu": lambda x: np.maximum(x, 0), "softsign": lambda x: x / (1 + np.abs(x)),
    "softplus": softplus, "hard_sigmoid": hard_sigmoid, "hard_sigmoid_keras2": lambda x: hard_sigmoid(x, 0.2),
    "relu6": lambda x: np.clip(x, 0, 6), "selu": selu, "gelu": gelu, "gelu_tanh": gelu_tanh,
    "silu": lambda x: x * sigmoid(x), "exponential": np.exp,
}  # fmt: skip

# Operators of ONNX on rows, of arguments that are rows or numbers for each feature.
PLAIN: dict[str, Callable[..., Rows]] = {
    "Relu": POINTWISE["relu"], "Tanh": np.tanh, "Sigmoid": sigmoid, "Softplus": softplus, "Softsign": POINTWISE["softsign"],
    "Exp": np.exp, "Log": np.log, "Erf": erf, "Sqrt": np.sqrt, "Abs": np.abs, "Neg": np.negative, "Reciprocal": np.reciprocal,
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide, "Pow": np.power, "Max": np.maximum,
    "Min": np.minimum, "PRelu": lambda x, slope: np.where(x < 0, x * slope, x), "Where": np.where, "Less": np.less,
    "Greater": np.greater, "LessOrEqual": np.less_equal, "GreaterOrEqual": np.greater_equal, "Not": np.logical_not,
    "Erfc": lambda x: 1 - erf(x), "HardSwish": lambda x: x * hard_sigmoid(x), "Mish": lambda x: x * np.tanh(softplus(x)),
}  # fmt: skip
REDUCTIONS: dict[str, Callable[..., Rows]] = {"ReduceMean": np.mean, "ReduceMax": np.max, "ReduceSum": np.sum}


def function_of(node: Node) -> Callable[..., Rows] | None:
    """What an operator computes of each element."""

    def number(name: str, default: float) -> float:
        return default if (value := node.number(name)) is None else value

    match node.operator:
        case "LeakyRelu":
            slope = number("alpha", 0.01)
            return lambda x: np.where(x < 0, slope * x, x)
        case "Elu":
            return functools.partial(elu, alpha=number("alpha", 1.0))
        case "Celu":
            alpha = number("alpha", 1.0)
            return lambda x: elu(x / alpha) * alpha
        case "Selu":
            return functools.partial(selu, alpha=number("alpha", SELU_ALPHA), scale=number("gamma", SELU_SCALE))
        case "HardSigmoid":
            return functools.partial(hard_sigmoid, alpha=number("alpha", 0.2), beta=number("beta", 0.5))
        case "Gelu":
            return gelu if node.text("approximate", "none") == "none" else gelu_tanh
        case "Swish":
            factor = number("alpha", 1.0)
            return lambda x: x * sigmoid(factor * x)
    return PLAIN.get(node.operator)
