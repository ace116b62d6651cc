"""Machine code for this CPU: compiled once (compiled), kept (cache) and put into the process (linker).

Knows nothing of LSTMs: any function of the signature in `compiled` can be made, cached and loaded this way.
"""
