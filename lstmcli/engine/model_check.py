"""Whether a model computes what it is known to."""

from typing import NamedTuple

import numpy as np

from lstmcli.engine.call import run_padded
from lstmcli.errors import DataError
from lstmcli.model.model_check import Check
from lstmcli.model.tree import Model

TOLERANCE = 1e-4  # of the largest output: frameworks differ by 1e-6 of it, and a wrong model by far more


class Agreement(NamedTuple):
    """How far a model's outputs are from the known ones: the largest difference, and the largest known output."""

    error: float
    scale: float

    def __str__(self) -> str:
        return f"off by {self.error:.2g} at most, where outputs reach {self.scale:.3g}"


def confirm(model: Model, check: Check, where: str) -> Agreement:
    """Runs the model over the check. Raises DataError: other outputs, and where they differ most; or nothing to compare."""
    if (widths := (check.x.shape[2], check.y.shape[2])) != (sizes := (model.input_size, model.output_size)):
        raise DataError(f"{where}: expected x of {sizes[0]} and y of {sizes[1]} features, got {widths[0]} and {widths[1]}")
    outputs, _ = run_padded(model, check.x, check.lengths, None, None, "post", None)
    steps = check.x.shape[1] if check.lengths is None else check.lengths[:, None]
    valid = np.broadcast_to(np.arange(check.x.shape[1]) < steps, check.x.shape[:2])[..., None]
    if not valid.any():
        raise DataError(f"{where}: expected at least one step to compare, got none")
    with np.errstate(invalid="ignore"):
        difference = np.where(valid, np.abs(outputs.astype(np.float64) - check.y), 0.0)
    scale = float(np.abs(np.where(valid, check.y, 0.0)).max())
    worst = np.unravel_index(np.where(np.isnan(difference), np.inf, difference).argmax(), difference.shape)
    found = Agreement(float(difference[worst]), scale)
    if not found.error <= TOLERANCE * scale < np.inf:
        row, step, feature = worst
        raise DataError(
            f"{where}: the model computes something else: {outputs[worst]:.6g} instead of {check.y[worst]:.6g} at sequence "
            f"{row}, step {step}, feature {feature}; {found}; expected {TOLERANCE:g} of that or less"
        )
    return found
