"""The LSTM in machine code: packed weights (layout), a register tile (tile), and lanes that bring sequences to it (lanes).

`lstm` is where it is loaded, `native` how it is compiled and cached, `heads` the same for layers without a state.
docs/kernel.md explains it. Nothing here imports from the rest of the package.
"""
