"""What Python and the kernels of heads agree on: the functions by number, and the tables that calls get."""

from enum import auto

from lstmcli.kernel.layout import FromZero

# By number; alpha is the slope of leaky_relu below 0 and the limit of elu.
FUNCTIONS = (
    *("linear", "tanh", "sigmoid", "relu", "softsign", "softplus", "elu", "hard_sigmoid", "hard_sigmoid_keras2"),
    *("leaky_relu", "relu6", "selu", "gelu", "gelu_tanh", "silu", "exponential", "logarithm"),
)


class Place(FromZero):
    """The int64 numbers that a call of the pointwise kernel gets."""

    FUNCTION = auto()  # its number in FUNCTIONS
    X_AT = auto()  # (COUNT,)
    Y_AT = auto()  # (COUNT,), may be X_AT
    COUNT = auto()
    ALPHA = auto()  # the bits of a float64


class DensePlace(FromZero):
    """The int64 numbers that a call of the dense kernel gets."""

    X_AT = auto()  # (ROWS, INPUTS), rows may overlap
    X_STEP = auto()  # bytes
    Y_AT = auto()  # (ROWS, OUTPUTS)
    Y_STEP = auto()
    ROWS = auto()
    INPUTS = auto()
    OUTPUTS = auto()
    PANELS_AT = auto()
    BIASES_AT = auto()
