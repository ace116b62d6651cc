"""PyTorch in `lstmcli bench`."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lstmcli.blocks import Lengths
from lstmcli.tools.bench.cases import BUCKETS, Batch, LeftOut, Way
from lstmcli.weights.pytorch import parameters


def ways(batch: Batch) -> Iterator[Way | LeftOut]:
    torch.set_num_threads(batch.threads)
    dtype = getattr(torch, batch.dtype)
    case = batch.case
    lstm = torch.nn.LSTM(
        case.embed,
        case.units[0],
        len(case.units),
        batch_first=True,
        bidirectional=case.bidirectional,
        proj_size=case.projection or 0,
    )
    lstm.load_state_dict({name: torch.tensor(weight) for name, weight in parameters(batch.model).items()})
    lstm = lstm.to(dtype)
    lengths = torch.from_numpy(batch.lengths)
    if batch.table is None:
        x, features = torch.from_numpy(batch.x).to(dtype), torch.nn.Identity()
    else:
        x, features = torch.from_numpy(batch.x), torch.nn.Embedding.from_pretrained(torch.from_numpy(batch.table).to(dtype))

    def packed() -> Any:
        with torch.inference_mode():
            rows = pack_padded_sequence(features(x), lengths, batch_first=True, enforce_sorted=False)
            return pad_packed_sequence(lstm(rows)[0], batch_first=True, total_length=case.time)[0]

    def padded(x: Any, lengths: Lengths) -> Any:
        with torch.inference_mode():
            return lstm(features(x))[0]

    yield Way("torch packed", packed, batch.dtype)
    if case.bidirectional:
        yield LeftOut("torch padded and in buckets", "its backward direction would begin in the padding")
        return
    yield Way("torch padded", lambda: padded(x, batch.lengths), batch.dtype)
    for count in BUCKETS if case.batch > 1 else ():
        run = batch.in_buckets(count, x, partial(torch.zeros, dtype=dtype), padded)
        yield Way(f"torch {count} buckets", run, batch.dtype)
