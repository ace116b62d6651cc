"""ONNX Runtime in `lstmcli bench`."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from lstmcli.blocks import Lengths
from lstmcli.tools.bench.cases import BUCKETS, Batch, LeftOut, Way, gates


def ways(batch: Batch) -> Iterator[Way | LeftOut]:
    if batch.case.projection:
        yield LeftOut("onnxruntime", "ONNX's LSTM has no projection")
        return
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = batch.threads
    session = onnxruntime.InferenceSession(onnx_file(batch), options, providers=["CPUExecutionProvider"])
    axes = (1, 0, 2)[: batch.x.ndim]
    time_major, lengths = np.ascontiguousarray(batch.x.transpose(axes)), batch.lengths.astype(np.int32)

    def call(x: Any, lengths: Any) -> Any:
        (outputs,) = session.run(None, {"x": x, "lengths": lengths})
        return np.asarray(outputs).transpose(1, 0, 2)  # a view: its axis order costs nothing here

    def bucket(x: Any, lengths: Lengths) -> Any:
        # Where all steps are computed, a check of each is saved; but a backward direction must know where to begin.
        steps = lengths.astype(np.int32) if batch.case.bidirectional else np.full(len(x), x.shape[1], np.int32)
        return call(np.ascontiguousarray(x.transpose(axes)), steps)

    def zeros(shape: tuple[int, ...]) -> Any:
        return np.zeros(shape, np.float32)

    yield Way("onnxruntime", lambda: call(time_major, lengths))
    for count in BUCKETS if batch.case.batch > 1 else ():
        yield Way(f"onnxruntime {count} buckets", batch.in_buckets(count, batch.x, zeros, bucket))


def onnx_file(batch: Batch) -> bytes:
    """Return a model over x (T, B, E), or ids (T, B), and lengths (B,) int32, with outputs (T, B, width)."""
    weights: dict[str, Any] = {"joined": np.array([0, 0, -1])}
    nodes = []
    if batch.table is not None:
        weights["table"] = batch.table
        nodes.append(helper.make_node("Gather", ["table", "x"], ["outputs"]))
    below = "x" if batch.table is None else "outputs"
    for k, cells in enumerate(batch.layers):
        w, r, bias = gates(cells, "iofg")
        weights |= {f"w{k}": w, f"r{k}": r, f"b{k}": np.concatenate([bias, np.zeros_like(bias)], axis=1)}
        direction = "bidirectional" if len(cells) == 2 else "forward"
        given = [below, f"w{k}", f"r{k}", f"b{k}", "lengths"]
        nodes += [
            helper.make_node("LSTM", given, [f"y{k}"], hidden_size=cells[0].units, direction=direction),  # (T, D, B, U)
            helper.make_node("Transpose", [f"y{k}"], [f"sides{k}"], perm=[0, 2, 1, 3]),
            helper.make_node("Reshape", [f"sides{k}", "joined"], [f"outputs{k}"]),
        ]
        below = f"outputs{k}"
    form, axes = (TensorProto.FLOAT, ["T", "B", batch.case.embed]) if batch.table is None else (TensorProto.INT64, ["T", "B"])
    graph = helper.make_graph(
        nodes,
        "lstm",
        [helper.make_tensor_value_info("x", form, axes), helper.make_tensor_value_info("lengths", TensorProto.INT32, ["B"])],
        [helper.make_tensor_value_info(below, TensorProto.FLOAT, ["T", "B", batch.model.output_size])],
        [numpy_helper.from_array(weight, name) for name, weight in weights.items()],
    )
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    content: bytes = file.SerializeToString()
    return content
