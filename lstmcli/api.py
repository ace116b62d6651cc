"""The public names, and the one place where a model (a tree of weights) is joined to the engine that runs it."""

from lstmcli.engine.call import run_padded
from lstmcli.errors import LstmcliError
from lstmcli.model.new_weights import CellOptions, init_model
from lstmcli.model.tree import Bidirectional, Cell, Model, Residual, Reverse, Stack, set_runner
from lstmcli.weights.load import load_model

__all__ = [
    "Bidirectional", "Cell", "CellOptions", "LstmcliError", "Model", "Residual", "Reverse", "Stack", "init_model", "load_model",
]  # fmt: skip

set_runner(run_padded)
