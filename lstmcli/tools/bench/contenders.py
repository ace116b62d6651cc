"""Who takes part in `lstmcli bench`: lstmcli itself, the frameworks, and NumPy's matrix product."""

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import numpy as np

from lstmcli.engine.chains.call import PRODUCT_BYTES, prepare
from lstmcli.engine.chains.prepared_chain import PRODUCT_STEPS
from lstmcli.tools.bench.cases import Batch, LeftOut, Way

OURS, SGEMM = "lstmcli", "sgemm"
SGEMM_SIZE = 1024
PEERS = {"torch": ("torch",), "onnxruntime": ("onnxruntime", "onnx"), "openvino": ("openvino",)}  # and their packages


def ways_of(contender: str) -> Callable[[Batch], Iterator[Way | LeftOut]]:
    """Return the function that makes a contender's ways to compute a batch. Raises ImportError."""
    if contender in PEERS:
        found: Callable[[Batch], Iterator[Way | LeftOut]] = import_module(f"lstmcli.tools.bench.{contender}_ways").ways
        return found
    return our_ways if contender == OURS else sgemm


def our_ways(batch: Batch) -> Iterator[Way]:
    """Yield lstmcli in float32, which the others are compared with, and in what was asked for."""
    for dtype in dict.fromkeys(("float32", batch.dtype)):
        chosen = None if dtype == "float32" else dtype

        def run(chosen: str | None = chosen) -> Any:
            if batch.table is None:
                return batch.model(batch.x, batch.lengths, threads=batch.threads, dtype=chosen)[0]
            return batch.chain.predict(batch.x, batch.lengths, batch.threads, dtype=chosen)

        if batch.table is not None:  # predict() does so after some batches, once
            prepared = prepare(batch.chain, batch.x.dtype, batch.threads, chosen)
            prepared.chain.expect(PRODUCT_STEPS * len(batch.table), PRODUCT_BYTES)
        yield Way(OURS, run, dtype)


def sgemm(batch: Batch) -> Iterator[Way]:
    """Yield NumPy's matrix product, of float32 whatever the others compute in."""
    a = np.random.default_rng(2).standard_normal((SGEMM_SIZE, SGEMM_SIZE), dtype=np.float32)
    yield Way(SGEMM, lambda: a @ a, batch.dtype)
