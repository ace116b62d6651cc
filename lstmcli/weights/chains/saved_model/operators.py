"""What each operator of TensorFlow's graphs makes of the layers before it, as Keras exports them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lstmcli.errors import DataError
from lstmcli.model.layers import Pool1D
from lstmcli.model.tree import Bidirectional, Cell, Model, Reverse
from lstmcli.weights.chains.graphs import row_functions as rf
from lstmcli.weights.chains.graphs.traced_graph import ELEMENT, traced
from lstmcli.weights.chains.graphs.traced_values import PADDING, Named
from lstmcli.weights.chains.saved_model.lstm_loop import Loop, LoopRoles
from lstmcli.weights.chains.saved_model.masks import Masks
from lstmcli.weights.containers.tensor import DTYPES, Tensor
from lstmcli.weights.draft import Draft, Origin
from lstmcli.weights.onnx_graph.constants import Array, Constants, limited
from lstmcli.weights.onnx_graph.graph import Graph, Node, Value
from lstmcli.weights.tf_graph.graph import CALLS, Library, function_of
from lstmcli.weights.tf_graph.operators import MOVES, SHAPES, folded, numbers_of

LOOPS = ("While", "StatelessWhile")
MAX_DEPTH = 16  # of functions that call functions
MAX_NODES = 1 << 20  # that are applied; a damaged file may call functions that call functions
MAX_TURNS = 10_000  # of a loop that only moves numbers about

# Operators on each element, of arguments that are rows or numbers for each feature.
NUMBERS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("Add", "AddV2", "BiasAdd"), np.add), "Sub": np.subtract, "Mul": np.multiply, "AddN": lambda *x: sum(x),
    **dict.fromkeys(("RealDiv", "Div"), np.divide), "FloorDiv": np.floor_divide, "FloorMod": np.mod, "Pow": np.power,
    "Maximum": np.maximum, "Minimum": np.minimum, "SquaredDifference": lambda x, y: (x - y) * (x - y), "Square": np.square,
    "Neg": np.negative, "Abs": np.abs, "Sqrt": np.sqrt, "Rsqrt": lambda x: 1 / np.sqrt(x), "Exp": np.exp, "Log": np.log,
    "Expm1": np.expm1, "Log1p": np.log1p, **dict.fromkeys(("Reciprocal", "Inv"), np.reciprocal), "Tanh": np.tanh,
    "Sigmoid": rf.sigmoid, "Softplus": rf.softplus, "Softsign": lambda x: x / (1 + np.abs(x)), "Elu": rf.elu, "Selu": rf.selu,
    "Relu": lambda x: np.maximum(x, 0), "Relu6": lambda x: np.clip(x, 0, 6), "Erf": rf.erf, "Erfc": lambda x: 1 - rf.erf(x),
    **dict.fromkeys(("SelectV2", "Select"), np.where), "ClipByValue": np.clip, "Less": np.less, "LessEqual": np.less_equal,
    "Greater": np.greater, "GreaterEqual": np.greater_equal, "LogicalAnd": np.logical_and, "LogicalOr": np.logical_or,
    "LogicalNot": np.logical_not,
}  # fmt: skip
EQUALITY = {"Equal": np.equal, "NotEqual": np.not_equal}  # which no number that a function is tried with shows
FLOATS, INTEGERS = (1, 2), (3, 9)  # of core/framework/types.proto
MERGES = {"ConcatV2": "concat", "Add": "sum", "AddV2": "sum", "Mul": "mul"}


def number_function(node: Node) -> Callable[..., Any] | None:
    """Return what an operator computes of each element."""
    if node.operator == "LeakyRelu":
        slope = 0.2 if (number := node.number("alpha")) is None else number
        return lambda x: np.where(x < 0, slope * x, x)
    if node.operator == "BiasAdd" and node.text("data_format", "NHWC") != "NHWC":
        return None
    return NUMBERS.get(node.operator)


class TensorflowOperators(Masks):
    """Applies operators, one after the other. variables: tensors by the names of the nodes that hold them."""

    def __init__(self, draft: Draft, constants: Constants, library: Library, variables: Mapping[str, Tensor]) -> None:
        super().__init__(draft, constants)
        self.library, self.variables = library, variables
        self.depth = 0
        self.tensors: dict[int, Tensor] = {}  # by the identity of their arrays, which `constants` keeps

    def needs(self, node: Node) -> list[Value]:
        return [] if node.operator == "ZerosLike" else super().needs(node)

    def apply(self, node: Node) -> None:
        if self.done > MAX_NODES:
            raise DataError(f"comes after more than {MAX_NODES} others; a damaged graph?")
        operator, inputs = node.operator, [self.constants.arrays.get(value) for value in node.inputs if value]
        flowing = any(array is not None and array.dtype == ELEMENT for array in inputs)
        if operator in CALLS or operator in LOOPS:
            self.put(node, self.call(node, self.known(inputs)))
        elif operator == "VarHandleOp":
            self.put(node, [self.variable(node)])
        elif operator == "ZerosLike":  # of a step that is computed for its shape alone
            self.put(node, [np.zeros(())])
        elif operator == "GatherV2" and self.numbers(node.input(1)) is not None:
            self.embedding(node)
        elif operator == "ConcatV2" and flowing and self.merged(node):
            return
        elif not flowing or operator in MOVES or operator in SHAPES:
            self.put(node, self.folded(node, self.known(inputs)))
        elif operator in ("Mul", "Add", "AddV2") and self.merged(node):
            return
        elif make := getattr(self, f"make_{operator}", None):
            make(node)
        elif function := number_function(node):
            self.give(node.outputs[0], self.computed(node, function, [self.operand(node, k) for k in range(len(node.inputs))]))
        else:
            raise DataError("an operator that is not known to this program; nothing is left out in silence")

    def known(self, inputs: list[Array | None]) -> list[Array]:
        found = [array for array in inputs if array is not None]
        if len(found) != len(inputs):
            raise DataError("takes what is not known; a damaged graph?")
        return found

    def put(self, node: Node, outputs: list[Array]) -> None:
        for value in node.outputs:
            self.constants.arrays[value] = outputs[value.index]

    def folded(self, node: Node, inputs: list[Array]) -> list[Array]:
        function = EQUALITY.get(node.operator) or number_function(node)
        if function:
            limited(np.broadcast_shapes(*(array.shape for array in inputs)), inputs[-1])
            with np.errstate(all="ignore"):
                return [np.asarray(function(*inputs))]
        try:
            made = folded(node, inputs)
        except KeyError as error:
            raise DataError("an operator that is not known to this program; nothing is left out in silence") from error
        return made if isinstance(made, list) else [made]

    def variable(self, node: Node) -> Array:
        tensor = self.variables.get(node.name)
        if tensor is None:
            raise DataError("a variable that the checkpoint does not hold")
        if tensor.dtype not in DTYPES:  # the seed of a Dropout, which is handed on and not used
            return np.empty(0, object)
        array = np.asarray(tensor.read())
        self.tensors[id(array)] = tensor
        return array

    # Functions and loops

    def call(self, node: Node, inputs: list[Array]) -> list[Array]:
        if self.depth >= MAX_DEPTH:
            raise DataError(f"functions call each other more than {MAX_DEPTH} deep; a damaged graph?")
        self.depth += 1
        try:
            if node.operator in CALLS:
                return self.run(self.library.graph(function_of(node, "f")), inputs)
            condition, body = (self.library.graph(function_of(node, name)) for name in ("cond", "body"))
            loop = Loop(inputs, functools.partial(self.run, condition), functools.partial(self.run, body))
            if any(inner.operator == "MatMul" for inner in body.nodes):
                return self.lstm(node, loop)
            turns = 0
            while bool(self.run(condition, inputs)[0]):
                inputs = self.run(body, inputs)
                turns += 1
                if turns > MAX_TURNS:
                    raise DataError(f"a loop of more than {MAX_TURNS} turns; a damaged graph?")
            return inputs
        finally:
            self.depth -= 1

    def run(self, function: Graph, inputs: list[Array]) -> list[Array]:
        """Return what a function gives for these arrays."""
        if len(inputs) != len(function.inputs):
            raise DataError(f"calls a function of {len(function.inputs)} inputs with {len(inputs)}; a damaged graph?")
        self.constants.arrays.update(zip(function.inputs, inputs, strict=True))
        self.follow(function.outputs)
        return self.known([self.constants.arrays.get(value) for value in function.outputs])

    def lstm(self, node: Node, loop: Loop) -> list[Array]:
        """What a loop puts out that is an LSTM."""
        roles = loop.roles()
        x, mask = (None if k is None else loop.inputs[k]["element"].swapaxes(0, 1) for k in (roles.x, roles.mask))
        assert x is not None
        backward = is_backward(node.input(roles.x))
        source = self.sequences(node, x[:, ::-1] if backward else x)
        cell = self.cell(loop, roles)
        if cell.input_size != source.width:
            raise DataError(f"takes {cell.input_size} features, got {source.width}")
        model: Model = Reverse(cell) if backward else cell
        if roles.zeros:
            self.zeroed.add(model)
        if mask is not None:
            self.heeds[model] = self.mask_of(mask[:, ::-1] if backward else mask, source)
        count, steps, _ = source.shape
        made = self.sources.add("sequences", (count, steps, cell.output_size), (*source.made, Named(model, lstm_name(node))))
        order = np.flip(made.numbers, 1) if backward else made.numbers
        outputs = [*loop.inputs]
        for k in roles.counters:
            outputs[k] = np.asarray(outputs[k] + steps)
        listed = order if roles.every_step else order[:, -1:]
        outputs[roles.outputs] = traced(listed.swapaxes(0, 1))
        for place in (roles.h, roles.before):
            if place is not None:
                outputs[place] = traced(order[:, -1])
        cells = self.sources.add("cells", (count, cell.output_size), made.made)
        outputs[roles.c] = traced(cells.numbers)
        return outputs

    def cell(self, loop: Loop, roles: LoopRoles) -> Cell:
        arrays = [loop.inputs[k] for k in (roles.kernel, roles.recurrent, *([] if roles.bias is None else [roles.bias]))]
        names = ("input_kernel", "recurrent_kernel", "bias")
        origins = [
            Origin(self.tensors[id(array)], name, "gates i, f, c, o")
            for array, name in zip(arrays, names, strict=False)
            if id(array) in self.tensors
        ]
        kernel, recurrent, *bias = arrays
        return self.draft.cell(
            origins, kernel, recurrent, bias=bias[0] if bias else None, activation=roles.activation,
            recurrent_activation=roles.recurrent_activation,
        )  # fmt: skip

    def merged(self, node: Node) -> bool:
        """Whether a node puts together what two LSTMs make of the same, one of them backward; then they are one layer."""
        operands = [numbers for value in node.inputs if (numbers := self.numbers(value)) is not None]
        if len(operands) != 2 or operands[0].shape != operands[1].shape or not operands[0].size:
            return False
        forward, backward = (self.sources.of(numbers) for numbers in operands)
        if forward is backward or not (forward.made and backward.made) or forward.rows or backward.rows:
            return False
        (one, name), (other, _) = forward.made[-1], backward.made[-1]
        same = forward.made[:-1] == backward.made[:-1] and forward.shape[:2] == backward.shape[:2]
        if not (same and isinstance(one, Cell) and isinstance(other, Reverse) and forward.kind == backward.kind == "sequences"):
            return False
        if self.heeds.get(one) is not self.heeds.get(other):
            raise DataError("puts two LSTMs together of which one heeds a mask and the other does not")
        merge = MERGES[node.operator]
        pair = (forward, backward.made[-1].name + merge)
        if (both := self.sources.upon.get(pair)) is None:
            model = Bidirectional(one, other.inner, merge)
            if one in self.heeds:
                self.heeds[model] = self.heeds[one]
            if one in self.zeroed or other in self.zeroed:
                self.zeroed.add(model)
            shape = (*forward.shape[:2], model.output_size)
            both = self.sources.upon[pair] = self.sources.add("sequences", shape, (*forward.made[:-1], Named(model, name)))
        (rows, features), (other_rows, other_features) = forward.places(operands[0]), backward.places(operands[1])
        if merge == "concat":
            axis = self.constants.of(node.inputs[-1])
            places = [rows * both.width + features, other_rows * both.width + forward.width + other_features]
            self.give(node.outputs[0], np.concatenate(places, numbers_of(axis)[0] if axis is not None else -1) + both.first)
            return True
        if (features != other_features).any():
            return False
        if not (rows == other_rows).all():  # the final states
            steps, other_steps = rows % both.steps, other_rows % both.steps
            together = (rows // both.steps == other_rows // both.steps).all()
            if not (together and (steps == both.steps - 1).all() and not other_steps.any()):
                return False
            numbers, both = self.sources.pooled(rows * both.width + features + both.first, both, "final")
            self.give(node.outputs[0], numbers)
            return True
        self.give(node.outputs[0], rows * both.width + features + both.first)
        return True

    # Layers

    def make_ResourceGather(self, node: Node) -> None:  # noqa: N802
        self.embedding(node)

    def make_MatMul(self, node: Node) -> None:  # noqa: N802
        kernel = self.required(node, 1)
        if node.integer("transpose_a"):
            raise DataError("transpose_a is not known to this program")
        self.dense(node, kernel.T if node.integer("transpose_b") else kernel, None)

    def make_BatchMatMulV2(self, node: Node) -> None:  # noqa: N802
        if node.integer("adj_x") or node.integer("adj_y"):
            raise DataError("adj_x or adj_y is not known to this program")
        self.dense(node, self.required(node, 1), None)

    def make_Softmax(self, node: Node) -> None:  # noqa: N802
        self.give(node.outputs[0], self.over_features(node, -1, rf.softmax))

    def make_LogSoftmax(self, node: Node) -> None:  # noqa: N802
        self.give(node.outputs[0], self.over_features(node, -1, rf.log_softmax))

    def make_FusedBatchNormV3(self, node: Node) -> None:  # noqa: N802
        """What Keras 2 makes of a LayerNormalization: each row is a channel, so that it is normalised by itself."""
        scale, shift = self.required(node, 1), self.required(node, 2)
        channels_first = node.text("data_format") == "NCHW" and self.flowing(node, 0).ndim == 4
        if not (node.integer("is_training", 1) and channels_first) or (scale != 1).any() or shift.any():
            raise DataError("normalises other than rows by themselves, which is not known to this program")
        epsilon = 1e-4 if (number := node.number("epsilon")) is None else number
        self.give(node.outputs[0], self.over_features(node, 2, functools.partial(rf.normalized, epsilon=epsilon)))

    def make_Cast(self, node: Node) -> None:  # noqa: N802
        """Ids and masks may be of any type of numbers; of others only floats to floats is nothing."""
        numbers = self.flowing(node, 0)
        source = self.sources.of(numbers)
        if node.integer("DstT") not in (FLOATS if source.kind not in ("ids", "mask") else (*FLOATS, *INTEGERS)):
            raise DataError("to this type is not known to this program")
        self.give(node.outputs[0], numbers)

    def make_Pad(self, node: Node) -> None:  # noqa: N802
        numbers, sides = self.flowing(node, 0), self.required(node, 1)
        if min(numbers_of(sides)) < 0:
            raise DataError("cuts with negative padding; not known to this program")
        self.give(node.outputs[0], np.pad(numbers, sides.tolist(), constant_values=PADDING) if sides.any() else numbers)

    # Windows over the steps

    def make_Conv2D(self, node: Node) -> None:  # noqa: N802
        kernel = self.required(node, 1)
        self.window(node, kernel.shape[:2], node.integers("dilations") or [1] * 4, kernel)

    def make_DilatedConv2D(self, node: Node) -> None:  # noqa: N802
        """See rewrites.dilated_convolution()."""
        kernel, dilation, sides, cut = (self.required(node, k) for k in range(1, 5))
        if (
            kernel.shape[0] != 1
            or len(dilation) != 1
            or node.text("padding") != "VALID"
            or cut[0, 0]
            or cut[0, 1] > sides[0, 1]
        ):
            raise DataError("pads or cuts in a way that is not known to this program")
        if (node.integers("strides") or [1]) != [1] * 4:
            raise DataError("strides with dilation are not known to this program")
        padding = (int(sides[0, 0]), int(sides[0, 1] - cut[0, 1]))
        options = {"size": kernel.shape[1], "stride": 1, "dilation": int(dilation[0]), "padding": padding}
        self.give(node.outputs[0], self.convolved(node, self.flowing(node, 0), kernel[0], None, options))

    def make_MaxPool(self, node: Node) -> None:  # noqa: N802
        self.window(node, (node.integers("ksize") or [1] * 4)[1:3], [1] * 4, "max")

    def make_AvgPool(self, node: Node) -> None:  # noqa: N802
        self.window(node, (node.integers("ksize") or [1] * 4)[1:3], [1] * 4, "mean")

    def window(self, node: Node, sizes: Sequence[int], dilations: list[int], what: Array | str) -> None:
        """A convolution, or a pool by its name, over an array (N, 1, T, E) or (N, T, 1, E)."""
        numbers, padding = self.flowing(node, 0), node.text("padding")
        strides = node.integers("strides") or [1] * 4
        if numbers.ndim != 4 or node.text("data_format", "NHWC") != "NHWC" or padding not in ("VALID", "SAME"):
            raise DataError("expected (sequences, 1, steps, features), padding VALID or SAME")
        axis = 2 if numbers.shape[1] == sizes[0] == 1 else 1
        other = 3 - axis
        if numbers.shape[other] != 1 or sizes[other - 1] != 1:
            raise DataError(f"windows {tuple(sizes)} over two axes are not known to this program; expected one, the steps")
        options: dict[str, Any] = {
            "size": sizes[axis - 1], "stride": strides[axis], "dilation": dilations[axis],
            "padding": "same" if padding == "SAME" else (0, 0),
        }  # fmt: skip
        steps = numbers.squeeze(other)
        if isinstance(what, str):
            made = self.windowed(node, steps, Pool1D(function=what, **options), steps.shape[2])
        elif what.shape[2] != steps.shape[2]:
            raise DataError(f"groups are not known to this program: a kernel for {what.shape[2]} of {steps.shape[2]} features")
        else:
            made = self.convolved(node, steps, what.squeeze(other - 1), None, options)
        self.give(node.outputs[0], np.expand_dims(made, other))

    # What is computed over steps or features

    def make_Mean(self, node: Node) -> None:  # noqa: N802
        self.reduce(node, "mean", np.mean)

    def make_Max(self, node: Node) -> None:  # noqa: N802
        self.reduce(node, "max", np.max)


def is_backward(steps: Value | None) -> bool:
    """Whether the list of steps that a loop takes was reversed for it, as go_backwards does."""
    unpacked = steps.maker.input(0) if steps and steps.maker and steps.maker.operator == "TensorListFromTensor" else None
    return bool(unpacked and unpacked.maker and unpacked.maker.operator == "ReverseV2")


def lstm_name(node: Node) -> str:
    return node.name.removesuffix("/while")
