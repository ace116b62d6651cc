"""The LSTM itself: packed weights (layout), a register tile (tile) fed by sequences in lanes (lanes), compiled once
(lstm, native). Imports nothing of the package outside this folder."""
