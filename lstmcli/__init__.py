"""LSTMs over padded sequences, without ever touching the padding.

model = lstmcli.init_model(input_size=20, units=[7], seed=0)      # or lstmcli.load_model("model.h5")
outputs, state = model(x, lengths=lengths)                        # (B, T, 7), {"0/c": (B, 7), "0/h": (B, 7)}
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lstmcli.errors import LstmcliError
    from lstmcli.model.new_weights import CellOptions, init_model
    from lstmcli.model.tree import Bidirectional, Cell, Model, Residual, Reverse, Stack
    from lstmcli.weights.load import load_model

__version__ = "0.1.0"
__all__ = [
    "Bidirectional", "Cell", "CellOptions", "LstmcliError", "Model", "Residual", "Reverse", "Stack", "init_model", "load_model",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # NumPy and h5py are loaded when something is used, so that `lstmcli --help` does not wait for them.
    from importlib import import_module

    for module in ("errors", "model.tree", "model.new_weights", "weights.load"):
        if name in __all__ and hasattr(found := import_module(f"lstmcli.{module}"), name):
            return getattr(found, name)
    raise AttributeError(f"module 'lstmcli' has no attribute {name!r}")
