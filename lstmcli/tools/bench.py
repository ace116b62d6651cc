"""lstmcli against the frameworks that one would use instead, on any shape: `lstmcli bench`.

All contenders run in one process, in turn, round after round, on the same padded batch, after their results were compared. What
a framework can prepare once (packing weights, compiling, turning the batch to its own order of axes) is not timed.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstmcli.api import Cell, Model, init_model
from lstmcli.blocks import Floats, Lengths
from lstmcli.errors import LstmcliError

Call = Callable[[], Floats]

BUCKETS = (2, 4, 8)  # into how many buckets a sorted batch is cut for a peer that computes the padding
ROUNDS = 5
TURN, PAUSE = 0.05, 0.2  # seconds; OpenBLAS and ONNX Runtime keep a core busy for 0.1 s after their work is done
TOLERANCES = {"float32": 1e-5, "bfloat16": 0.05}
SGEMM_SIZE = 1024


@dataclass(frozen=True)
class Case:
    """A batch of `batch` sequences of at most `time` steps. `fill` is the share of its steps that are not padding."""

    batch: int = 64
    time: int = 100
    embed: int = 128
    units: int = 128
    fill: float = 0.5

    def lengths(self) -> Lengths:
        """Return lengths (batch,) spread from 1 to `time`, in a mixed order: the same for the same case."""
        quantiles = (np.random.default_rng(0).permutation(self.batch) + 0.5) / self.batch
        lengths = np.ceil(self.time * quantiles ** (1 / self.fill - 1)).astype(np.int64)
        lengths[lengths.argmax()] = self.time
        return lengths

    def flops(self) -> int:
        """Count the floating-point operations of the valid steps: 2 * 4 * units * (embed + units) each."""
        return 8 * self.units * (self.embed + self.units) * int(self.lengths().sum())


CASES = (
    Case(5, 10, 20, 7, 0.76),
    Case(32, 50, 64, 64, 0.5),
    Case(64, 100, 128, 128, 0.5),
    Case(64, 100, 256, 256, 0.5),
    Case(128, 200, 300, 512, 0.5),
    Case(32, 100, 1024, 1024, 0.5),
    Case(1, 200, 128, 128, 1.0),
    Case(256, 128, 64, 32, 0.3),
)


@dataclass(frozen=True)
class Batch:
    """What a contender gets: x (B, T, E) with zeros in the padding, lengths (B,), and a model of one plain cell."""

    x: Floats
    lengths: Lengths
    model: Model
    threads: int

    @property
    def cell(self) -> Cell:
        (_, cell), *_ = self.model.cells()
        return cell

    def gates(self, order: str) -> tuple[Floats, Floats, Floats]:
        """Return W (4U, E), R (4U, U) and the bias (4U,) with the gates in `order`, a permutation of "ifgo"."""
        cell, units = self.cell, self.cell.units
        assert cell.bias is not None
        bias = cell.bias.copy()
        bias[units : 2 * units] += np.float32(cell.forget_bias)
        columns = np.concatenate([np.arange(units) + units * "ifgo".index(gate) for gate in order])
        return cell.input_kernel.T[columns].copy(), cell.recurrent_kernel.T[columns].copy(), bias[columns]

    def buckets(self, count: int) -> list[tuple[NDArray[np.int64], int]]:
        """Sort the batch by length and cut it evenly: the rows of each bucket, and the longest length in it."""
        parts = np.array_split(np.argsort(self.lengths, kind="stable"), min(count, len(self.lengths)))
        return [(rows, int(self.lengths[rows].max())) for rows in parts]

    def in_buckets(self, count: int, run: Callable[[Floats], Floats]) -> Call:
        """Return a call of `run`, which computes all of (b, t, E), on each trimmed bucket."""
        buckets = self.buckets(count)
        batch, time, _ = self.x.shape

        def call() -> Floats:
            outputs = np.zeros((batch, time, self.cell.units), np.float32)
            for rows, longest in buckets:
                outputs[rows, :longest] = run(self.x[rows, :longest])
            return outputs

        return call


@dataclass(frozen=True)
class Measured:
    """One contender on one case. `ratio`: its time over that of lstmcli, the median of the rounds; above 1 it is slower."""

    name: str
    milliseconds: float
    gflops: float
    ratio: float


def measure(case: Case, threads: int, dtype: str = "float32") -> list[Measured]:
    """Measure lstmcli with float32 or bfloat16, then all frameworks that are installed and NumPy's matrix product with float32.

    Raises LstmcliError if their results differ by more than TOLERANCES says.
    """
    model = init_model(case.embed, [case.units])
    lengths = case.lengths()
    x = np.random.default_rng(1).standard_normal((case.batch, case.time, case.embed), dtype=np.float32)
    x[np.arange(case.time) >= lengths[:, None]] = 0
    batch = Batch(x, lengths, model, threads)
    chosen, tolerance = None if dtype == "float32" else dtype, TOLERANCES[dtype]
    calls = {"lstmcli": lambda: model(x, lengths, threads=threads, dtype=chosen)[0]} | dict(peers(batch))
    want = calls["lstmcli"]()
    for name, call in calls.items():
        error = np.abs(call() - want)[np.arange(case.time) < lengths[:, None]].max()
        if not error <= tolerance:
            raise LstmcliError(f"{name}: expected the outputs of lstmcli within {tolerance}, got a difference of {error}")
    times = in_rounds(calls | {"sgemm": sgemm()})
    flops = dict.fromkeys(times, case.flops()) | {"sgemm": 2 * SGEMM_SIZE**3}
    return [
        Measured(
            name,
            median(own) * 1e3,
            flops[name] / median(own) / 1e9,
            median(theirs / ours * flops["lstmcli"] / flops[name] for theirs, ours in zip(own, times["lstmcli"], strict=True)),
        )
        for name, own in times.items()
    ]


def in_rounds(calls: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Return the seconds of each call in each round. They take turns, so that a change of the machine's speed meets them all.

    A turn is a pause, in which the threads of the one before stop waiting for more work; a call that is not counted, which
    brings code and data back into the caches; and then as many calls as TURN allows, of which the median counts.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            time.sleep(PAUSE)
            call()
            turn: list[float] = []
            while not turn or sum(turn) < TURN:
                start = time.perf_counter()
                call()
                turn.append(time.perf_counter() - start)
            times[name].append(median(turn))
    return times


def sgemm() -> Callable[[], Any]:
    a = np.random.default_rng(2).standard_normal((SGEMM_SIZE, SGEMM_SIZE), dtype=np.float32)
    return lambda: a @ a


def peers(batch: Batch) -> Iterator[tuple[str, Call]]:
    if find_spec("torch"):
        yield from torch_calls(batch)
    if find_spec("onnxruntime") and find_spec("onnx"):
        yield from onnxruntime_calls(batch)
    if find_spec("openvino"):
        yield from openvino_calls(batch)


def torch_calls(batch: Batch) -> Iterator[tuple[str, Call]]:
    import torch
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    torch.set_num_threads(batch.threads)
    w, r, bias = (torch.from_numpy(weight) for weight in batch.gates("ifgo"))
    lstm = torch.nn.LSTM(w.shape[1], r.shape[1], batch_first=True)
    state = {"weight_ih_l0": w, "weight_hh_l0": r, "bias_ih_l0": bias, "bias_hh_l0": torch.zeros_like(bias)}
    lstm.load_state_dict(state)
    x, lengths = torch.from_numpy(batch.x), torch.from_numpy(batch.lengths)

    def packed() -> Floats:
        with torch.inference_mode():
            rows = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            outputs, _ = pad_packed_sequence(lstm(rows)[0], batch_first=True, total_length=x.shape[1])
            return np.asarray(outputs)

    def padded(x: Floats) -> Floats:
        with torch.inference_mode():
            return np.asarray(lstm(torch.from_numpy(x))[0])

    yield "torch packed", packed
    yield "torch padded", lambda: padded(batch.x)
    for count in BUCKETS if len(batch.x) > 1 else ():
        yield f"torch {count} buckets", batch.in_buckets(count, padded)


def onnxruntime_calls(batch: Batch) -> Iterator[tuple[str, Call]]:
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    w, r, bias = batch.gates("iofg")
    weights = {"w": w[None], "r": r[None], "b": np.concatenate([bias, np.zeros_like(bias)])[None]}
    node = helper.make_node("LSTM", ["x", "w", "r", "b", "lengths"], ["y"], hidden_size=batch.cell.units)
    graph = helper.make_graph(
        [node],
        "lstm",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["T", "B", w.shape[1]]),
            helper.make_tensor_value_info("lengths", TensorProto.INT32, ["B"]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["T", 1, "B", batch.cell.units])],
        [numpy_helper.from_array(weight, name) for name, weight in weights.items()],
    )
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = batch.threads
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    lengths = batch.lengths.astype(np.int32)
    time_major = np.ascontiguousarray(batch.x.transpose(1, 0, 2))

    def one_call() -> Floats:
        (outputs,) = session.run(None, {"x": time_major, "lengths": lengths})
        return np.asarray(outputs)[:, 0].transpose(1, 0, 2)  # a view: its axis order costs nothing here

    def padded(x: Floats) -> Floats:
        full = np.full(len(x), x.shape[1], np.int32)
        (outputs,) = session.run(None, {"x": np.ascontiguousarray(x.transpose(1, 0, 2)), "lengths": full})
        return np.asarray(outputs)[:, 0].transpose(1, 0, 2)

    yield "onnxruntime", one_call
    for count in BUCKETS if len(batch.x) > 1 else ():
        yield f"onnxruntime {count} buckets", batch.in_buckets(count, padded)


def openvino_calls(batch: Batch) -> Iterator[tuple[str, Call]]:
    import openvino
    from openvino import opset13 as ops

    w, r, bias = batch.gates("figo")
    core = openvino.Core()
    compiled: dict[tuple[int, int], Any] = {}

    def padded(x: Floats) -> Floats:
        """Static shapes and full lengths: the form that OpenVINO runs fast (it has none that skips padding)."""
        count, steps, features = x.shape
        if (count, steps) not in compiled:
            given = ops.parameter([count, steps, features], np.float32)
            zeros = ops.constant(np.zeros((count, 1, batch.cell.units), np.float32))
            full = ops.constant(np.full(count, steps, np.int32))
            kernels = [ops.constant(weight[None]) for weight in (w, r, bias)]
            node = ops.lstm_sequence(given, zeros, zeros, full, *kernels, batch.cell.units, "forward")
            model = openvino.Model([node.output(0)], [given])
            settings = {"INFERENCE_NUM_THREADS": batch.threads, "INFERENCE_PRECISION_HINT": "f32"}
            compiled[count, steps] = core.compile_model(model, "CPU", settings).create_infer_request()
        return np.asarray(compiled[count, steps].infer({0: x}, share_inputs=True, share_outputs=True)[0])[:, 0]

    yield "openvino padded", lambda: padded(batch.x)
    for count in BUCKETS if len(batch.x) > 1 else ():
        yield f"openvino {count} buckets", batch.in_buckets(count, padded)
