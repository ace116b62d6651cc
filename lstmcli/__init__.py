"""LSTMs over padded sequences, without ever touching the padding.

model = lstmcli.init_model(input_size=20, units=[7], seed=0)      # or lstmcli.load_model("model.h5")
outputs, state = model(x, lengths=lengths)                        # (B, T, 7), {"0/c": (B, 7), "0/h": (B, 7)}
"""

from typing import TYPE_CHECKING, Any

from lstmcli.version import __version__

if TYPE_CHECKING:
    from lstmcli.api import (
        Bidirectional,
        Cell,
        CellOptions,
        LstmcliError,
        Model,
        Residual,
        Reverse,
        Stack,
        init_model,
        load_model,
    )

__all__ = [
    "Bidirectional", "Cell", "CellOptions", "LstmcliError", "Model", "Residual", "Reverse", "Stack",
    "__version__", "init_model", "load_model",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # NumPy and h5py are loaded when something is used, so that `lstmcli --help` does not wait for them.
    if name in __all__:
        from lstmcli import api

        return getattr(api, name)
    raise AttributeError(f"module 'lstmcli' has no attribute {name!r}")
