"""OpenVINO in `lstmcli bench`."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import openvino
from openvino import opset13 as ops

from lstmcli.blocks import Lengths
from lstmcli.tools.bench.cases import BUCKETS, Batch, LeftOut, Way, gates

HINTS = {"float32": "f32", "bfloat16": "bf16"}


def ways(batch: Batch) -> Iterator[Way | LeftOut]:
    if batch.case.projection:
        yield LeftOut("openvino", "its LSTMSequence has no projection")
        return
    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": batch.threads, "INFERENCE_PRECISION_HINT": HINTS[batch.dtype]}
    requests: dict[tuple[int, ...], Any] = {}

    def padded(x: Any, lengths: Lengths) -> Any:
        steps = lengths if batch.case.bidirectional else np.full(len(x), x.shape[1])
        key = (*x.shape, *steps)
        if key not in requests:
            requests[key] = core.compile_model(graph(batch, x.shape, steps), "CPU", settings).create_infer_request()
        return np.asarray(requests[key].infer({0: x}, share_inputs=True, share_outputs=True)[0])

    def zeros(shape: tuple[int, ...]) -> Any:
        return np.zeros(shape, np.float32)

    padded(batch.x, batch.lengths)
    (request,) = requests.values()
    used = request.get_compiled_model().get_property("INFERENCE_PRECISION_HINT").to_string()
    dtype = next((name for name, hint in HINTS.items() if hint == used), used)
    yield Way("openvino padded", lambda: padded(batch.x, batch.lengths), dtype)
    for count in BUCKETS if batch.case.batch > 1 else ():
        yield Way(f"openvino {count} buckets", batch.in_buckets(count, batch.x, zeros, padded), dtype)


def graph(batch: Batch, shape: tuple[int, ...], lengths: Lengths) -> Any:
    """Return a model of static shapes that computes all steps: the form that OpenVINO runs fast. None skips padding.

    A backward direction runs over turned sequences, which takes 0.8 of the time of LSTMSequence's own with lengths.
    """
    count, steps = shape[:2]
    x = ops.parameter(shape, np.float32 if batch.table is None else np.int64)
    full, valid = (ops.constant(np.asarray(each, np.int32)) for each in ([steps] * count, lengths))
    below = x if batch.table is None else ops.gather(ops.constant(batch.table), x, ops.constant(0))
    for cells in batch.layers:
        sides = []
        for cell, turned in zip(cells, (False, True), strict=False):
            given = ops.reverse_sequence(below, valid, batch_axis=0, seq_axis=1) if turned else below
            zeros = ops.constant(np.zeros((count, 1, cell.units), np.float32))
            kernels = [ops.constant(weight) for weight in gates((cell,), "figo")]
            node = ops.lstm_sequence(given, zeros, zeros, full, *kernels, cell.units, "forward")
            side = ops.squeeze(node.output(0), ops.constant([1]))  # of (B, 1, T, U)
            sides.append(ops.reverse_sequence(side, valid, batch_axis=0, seq_axis=1) if turned else side)
        below = ops.concat(sides, 2) if len(sides) == 2 else sides[0]
    return openvino.Model([below], [x])
