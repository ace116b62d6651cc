"""LSTMs over padded sequences, without ever computing the padding.

model = lstmcli.init_model(input_size=20, units=[7], seed=0)      # or lstmcli.load_model("model.h5")
outputs, state = model(x, lengths=lengths)                        # (B, T, 7), {"0/c": (B, 7), "0/h": (B, 7)}
facts = lstmcli.run("x.h5", lens="lens.npy", units=7)             # as the command does it, for files larger than memory
predictions = lstmcli.load_model("model.keras").predict(tokens)   # with the layers before and after the LSTMs
"""

from lstmcli.version import __version__

TYPE_CHECKING = False  # as type checkers take it: to import typing would delay the handling of Ctrl-C by half of the start
if TYPE_CHECKING:
    from typing import Any

    from lstmcli.api import (
        Bidirectional,
        Cell,
        CellOptions,
        Chain,
        LstmcliError,
        Model,
        Residual,
        Reverse,
        Stack,
        init_model,
        load_model,
        open_result,
        run,
    )

__all__ = [
    "Bidirectional", "Cell", "CellOptions", "Chain", "LstmcliError", "Model", "Residual", "Reverse", "Stack",
    "__version__", "init_model", "load_model", "open_result", "run",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> "Any":
    # NumPy and h5py are loaded when something is used, so that `lstmcli --help` does not wait for them.
    if name in __all__:
        import lstmcli.run  # noqa: F401
        from lstmcli import api

        # The room of that name has just become an attribute. What users call is the function, and rooms are imported by name.
        globals()["run"] = api.run
        return getattr(api, name)
    raise AttributeError(f"module 'lstmcli' has no attribute {name!r}")
