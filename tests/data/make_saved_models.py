"""Makes saved_models.tar.xz: small SavedModels as Keras 3 exports them, with what Keras predicts. Needs tensorflow.

    KERAS_BACKEND=tensorflow python tests/data/make_saved_models.py

A member NAME/ is a SavedModel, NAME.npz has `x` and the `predictions` for it; where a mask is what matters, NAME.keras is the
model as Keras saves it.
"""

import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers as of

ARCHIVE = Path(__file__).with_name("saved_models.tar.xz")
STEPS, FEATURES, IDS = 7, 3, 9


def sequences(*layers: Any, steps: int | None = None) -> Any:
    return keras.Sequential([keras.Input((steps, FEATURES), name="x"), *layers])


def tokens(*layers: Any, steps: int | None = None) -> Any:
    return keras.Sequential([keras.Input((steps,), dtype="int32", name="x"), of.Embedding(IDS, 4, mask_zero=True), *layers])


def models() -> Iterator[tuple[str, Any]]:
    """Yield names, and models of layers that TensorFlow's graph has in different ways."""
    both = of.Bidirectional
    yield (
        "sentiment",
        tokens(both(of.LSTM(3, return_sequences=True)), both(of.LSTM(2)), of.Dense(4, "relu"), of.Dense(1, "sigmoid")),
    )
    yield "tagger", tokens(both(of.LSTM(3, return_sequences=True)), of.TimeDistributed(of.Dense(5, "softmax")), steps=STEPS)
    yield "tagger_open", tokens(of.LSTM(3, return_sequences=True), of.TimeDistributed(of.Dense(5, "softmax")))
    yield "masking", sequences(of.Masking(-1.0), of.LSTM(4, return_sequences=True), of.LSTM(3), of.Dense(2, "softmax"))
    yield "pooled_mean", tokens(of.LSTM(3, return_sequences=True), of.GlobalAveragePooling1D(), of.Dense(2))
    yield "convolution", sequences(
        of.Conv1D(4, 3, padding="causal", dilation_rate=2), of.MaxPooling1D(2, strides=1, padding="same"), of.Conv1D(3, 2),
        of.AveragePooling1D(2), of.BatchNormalization(), of.LSTM(3, "softsign", "hard_sigmoid"), of.Dense(2),
    )  # fmt: skip
    yield "normalized", sequences(
        of.LSTM(4, return_sequences=True, go_backwards=True), of.LayerNormalization(), of.Dropout(0.5),
        both(of.LSTM(3), merge_mode="ave"), of.BatchNormalization(), of.Dense(3, "gelu"), of.Dense(3, "silu"), of.LeakyReLU(),
    )  # fmt: skip
    yield "autoencoder", sequences(of.LSTM(4), of.RepeatVector(5), of.LSTM(3, return_sequences=True), of.Dense(FEATURES))
    yield "flattened", sequences(of.LSTM(3, return_sequences=True), of.Flatten(), of.Dense(2), steps=STEPS)
    yield "one_step", sequences(of.LSTM(3, use_bias=False), of.Dense(2), steps=1)
    yield "masked_maximum", tokens(of.LSTM(2, return_sequences=True), of.GlobalMaxPooling1D())
    yield "masked_convolution", sequences(of.Masking(-1.0), of.Conv1D(3, 2), of.LSTM(2), of.Dense(2))
    yield "masked_flatten", tokens(both(of.LSTM(2, return_sequences=True)), of.Flatten(), of.Dense(2), steps=STEPS)
    yield "masked_backward", tokens(of.LSTM(3, return_sequences=True, go_backwards=True), of.Conv1D(3, 2), of.LSTM(2))
    # What is refused.
    yield "gru", sequences(of.GRU(2))
    yield "unrolled", sequences(of.LSTM(2, unroll=True), steps=3)
    yield (
        "residual",
        keras.Model(x := keras.Input((None, FEATURES)), of.Add()([of.LSTM(FEATURES, return_sequences=True)(x), x])),
    )
    one, other = keras.Input((None, FEATURES), name="one"), keras.Input((None, FEATURES), name="other")
    yield "two_inputs", keras.Model([one, other], of.Add()([of.LSTM(2)(one), of.LSTM(2)(other)]))
    yield "two_outputs", keras.Model(one, [of.LSTM(2)(one), of.LSTM(3)(one)])


def inputs(model: Any, random: np.random.Generator) -> np.ndarray:
    shape = model.inputs[0].shape
    if len(shape) == 3:
        x = random.normal(size=(5, shape[1] or STEPS, FEATURES)).astype(np.float32)
        if any(isinstance(layer, of.Masking) for layer in model.layers):
            x[1, :3] = x[2, 4:] = x[3, 2] = -1
        return x
    x = random.integers(1, IDS, (5, STEPS)).astype(np.int32)
    x[1, :3] = x[2, 4:] = x[3, 2] = 0
    return x


def main() -> None:
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder, tarfile.open(ARCHIVE, "w:xz", preset=9) as archive:
        for name, model in models():
            for weight in model.weights:
                values = random.normal(0, 0.5, weight.shape)
                if weight.dtype == "float32":
                    weight.assign(np.abs(values) + 0.2 if "variance" in weight.path else values)
            place = Path(folder, name)
            if name.startswith("masked"):
                model.save(f"{place}.keras")
                archive.add(f"{place}.keras", f"{name}.keras")
            model.export(place, verbose=False)
            if len(model.inputs) == len(model.outputs) == 1:
                x = inputs(model, random)
                np.savez(f"{place}.npz", x=x, predictions=model.predict(x, verbose=0))
                archive.add(f"{place}.npz", f"{name}.npz")
            for part in ("saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"):
                archive.add(place / part, f"{name}/{part}")


if __name__ == "__main__":
    main()
