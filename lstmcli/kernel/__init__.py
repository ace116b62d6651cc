"""The LSTM itself: packed weights (layout), a register tile (tile) fed by sequences in lanes (lanes), compiled once
(compiled). Imports nothing of the package outside this folder."""
