"""What kernels compute, as hashes of results: the same ones on every CPU."""

# One hash for all CPUs. A change of it changes what users get: it needs a reason and a line in the changelog.
HASH = "af67c62cf9820fa744324f94ed7fb9067aba8b24d39158261001726da7bb90a5"

EVERY_OPTION_HASH = "c6507e35fd19a014413099bf55116a1eeda23a602a0618b2cf2c67f6115dcfc9"

BFLOAT16_HASH = "624965385ab5f5d1aa1db697ecacd0bf216762886a3209d48f81d6c3483ed93f"

EVERY_OPTION_BFLOAT16_HASH = "091aa9cab72d79697bec2254b13b8ff169468ded79e723d08aed030650a895d0"

PROGRAM = """
import dataclasses, hashlib, sys
import numpy as np
import lstmcli
from lstmcli.model.tree import ACTIVATIONS, RECURRENT_ACTIVATIONS
digest = hashlib.sha256()
bits = np.random.PCG64(5)
x = (bits.random_raw(40 * 23 * 21) >> np.uint64(11)).reshape(40, 23, 21) * 2.0**-51 - 2
lengths = (bits.random_raw(40) % np.uint64(24)).astype(np.int64)
models = [lstmcli.init_model(21, [35, 7], seed=3)]
if "every option" in sys.argv:
    clips = {"cell_clip": 0.4, "projection_clip": 0.2}
    options = lstmcli.CellOptions(peepholes=True, projection=12, **clips)
    (both,) = lstmcli.init_model(21, [35], 3, options, bidirectional=True).layers
    cell = both.forward
    changes = [{"activation": name} for name in ACTIVATIONS]
    changes += [{"recurrent_activation": name} for name in RECURRENT_ACTIVATIONS]
    changes += [{"gate_clip": 0.5}, {"input_forget": True}, {"peephole": None, "cell_clip": None}]
    cells = [dataclasses.replace(cell, **change) for change in changes]
    models = [lstmcli.Bidirectional(one, both.backward, merge="mean") for one in cells]
if "fetching" in sys.argv:
    from lstmcli.engine import packed_cell
    split = packed_cell.split_work
    packed_cell.split_work = lambda *given: split(*given)._replace(lanes=18, fetches=True)
for model in models:
    chosen = "bfloat16" if "bfloat16" in sys.argv else None
    for dtype in ("float32", "float64"):
        outputs, state = model(x.astype(dtype), lengths, threads=2, dtype=chosen)
        for array in (outputs, *(state[name] for name in sorted(state))):
            digest.update(array.tobytes())
print(digest.hexdigest(), "numba" in sys.modules)
"""

AVX2 = "+sse4.2,+avx,+avx2,+fma"
AVX512 = f"{AVX2},+avx512f,+avx512dq,+avx512bw,+avx512vl"
