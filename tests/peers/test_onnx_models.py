"""`lstmcli predict` against ONNX Runtime: random PyTorch modules of all layers that are known, as both exporters write them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.predictions import MODELS, assert_predicts

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
pytest.importorskip("onnx", reason="onnx is not installed: pip install onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: pip install onnxruntime")
pytestmark = [
    *(pytest.mark.peers, pytest.mark.slow),
    pytest.mark.filterwarnings("ignore"),  # of the exporters, which are not under test
]
nn, functional = torch.nn, torch.nn.functional

ACTIVATIONS: list[Callable[[], Any]] = [
    nn.ReLU, nn.Tanh, nn.Sigmoid, nn.ELU, nn.SELU, nn.LeakyReLU, nn.Softplus, nn.Softsign, nn.Hardsigmoid, nn.GELU, nn.SiLU,
    nn.ReLU6, nn.PReLU, nn.Identity, lambda: nn.GELU("tanh"), lambda: nn.ELU(0.7), lambda: nn.Dropout(0.5),
    lambda: Calls(torch.exp), lambda: Calls(lambda x: x * 0.5 - 1),
]  # fmt: skip


class Calls(nn.Module):  # type: ignore[misc]
    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x)


class Steps(nn.Module):  # type: ignore[misc]
    """A module of (sequences, features, steps) on (sequences, steps, features)."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Any) -> Any:
        return self.module(x.transpose(1, 2)).transpose(1, 2)


class Outputs(nn.Module):  # type: ignore[misc]
    """An LSTM and what is taken of it."""

    def __init__(self, lstm: Any, word: str) -> None:
        super().__init__()
        self.lstm, self.word = lstm, word

    def forward(self, x: Any) -> Any:
        first = self.lstm.batch_first
        y, (h, _) = self.lstm(x if first else x.transpose(0, 1))
        y = y if first else y.transpose(0, 1)
        match self.word:
            case "all":
                return y
            case "state":
                return torch.cat([h[-2], h[-1]], dim=1) if self.lstm.bidirectional else h[-1]
            case "swapped":
                return torch.cat([h[-1], h[-2]], dim=-1) if self.lstm.bidirectional else h[-1]
            case "ends":
                units = self.lstm.hidden_size
                return torch.cat([y[:, -1, :units], y[:, 0, units:]], dim=1) if self.lstm.bidirectional else y[:, -1, :]
            case "last":
                return y[:, -1]
            case "mean":
                return y.mean(dim=1)
            case "max":
                return y.max(dim=1).values
            case "amax":
                return torch.amax(y, 1)
            case "sum":
                return y.sum(1)
            case "flat":
                return y.reshape(y.shape[0], -1)
            case "pool":
                return functional.adaptive_avg_pool1d(y.transpose(1, 2), 1).squeeze(-1)
        raise AssertionError(self.word)


def stepwise(rng: np.random.Generator, width: int) -> tuple[Any, int]:
    """A module of one width on another."""
    kernel = int(rng.integers(1, 4))
    other = int(rng.integers(1, 7))
    kinds: list[Callable[[], tuple[Any, int]]] = [
        lambda: (nn.Linear(width, other, bias=bool(rng.integers(2))), other),
        lambda: (ACTIVATIONS[rng.integers(len(ACTIVATIONS))](), width),
        lambda: (nn.LayerNorm(width, eps=1e-3, elementwise_affine=bool(rng.integers(2))) if width > 1 else nn.Tanh(), width),
        lambda: (Steps(nn.BatchNorm1d(width)), width),
        lambda: (Steps(nn.Conv1d(width, other, kernel, padding=int(rng.integers(0, 3)))), other),
        lambda: (Steps(nn.Conv1d(width, other, 3, padding=kernel, dilation=kernel)), other),
        lambda: (Steps(nn.MaxPool1d(kernel, stride=1)), width),
        lambda: (Steps(nn.AvgPool1d(kernel, stride=1, count_include_pad=bool(rng.integers(2)), padding=kernel // 2)), width),
    ]
    return kinds[rng.integers(len(kinds))]()


def random_model(rng: np.random.Generator) -> tuple[Any, np.ndarray]:
    count, steps, width = int(rng.integers(1, 7)), int(rng.integers(6, 10)), int(rng.integers(1, 7))
    layers: list[Any] = []
    if rng.random() < 0.4:
        layers.append(nn.Embedding(12, width))
        x = rng.integers(0, 12, (count, steps))
    else:
        x = rng.normal(size=(count, steps, width)).astype(np.float32)
    for _ in range(rng.integers(0, 3)):
        module, width = stepwise(rng, width)
        layers.append(module)
    for k in range(top := int(rng.integers(1, 3))):
        units, both = int(rng.integers(1, 6)), bool(rng.integers(2))
        lstm = nn.LSTM(width, units, int(rng.integers(1, 3)), batch_first=rng.random() < 0.7, bidirectional=both)
        width = units * (1 + both)
        words = ["all", "state", "swapped", "ends", "last", "mean", "max", "amax", "sum", "pool"]
        word = "all" if k < top - 1 else str(rng.choice(words))
        layers.append(Outputs(lstm, word))
    if word == "all" and rng.random() < 0.5:
        module, width = stepwise(rng, width)
        layers.append(module)
    layers += [nn.Linear(width, 5), ACTIVATIONS[rng.integers(len(ACTIVATIONS))](), nn.Linear(5, 3, bias=bool(rng.integers(2)))]
    layers += [[nn.Softmax(dim=-1)], [nn.LogSoftmax(dim=-1)], []][rng.integers(3)]
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.tensor(rng.normal(0, 0.5, parameter.shape)))
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.copy_(torch.tensor(np.abs(rng.normal(0, 0.5, buffer.shape)) + 0.2))
    return model.eval(), x


def export(model: Any, x: np.ndarray, path: Path, dynamo: bool, dynamic: bool) -> None:
    axes = {0: "batch", 1: "time"}
    options: dict[str, Any] = {}
    if dynamic and dynamo:
        options["dynamic_shapes"] = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("time")},)
    elif dynamic:
        options["dynamic_axes"] = {"input": axes}
    torch.onnx.export(model, (torch.tensor(x),), str(path), input_names=["input"], dynamo=dynamo, **options)


@pytest.mark.parametrize("exporter", ["older", "newer"])
@pytest.mark.parametrize("seed", range(MODELS))
def test_pytorch_in_onnx(seed: int, exporter: str, tmp_path: Path) -> None:
    if exporter == "newer":
        pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install onnxscript")
    rng = np.random.default_rng(seed)
    dynamic = exporter == "older" and bool(rng.integers(2))
    model, x = random_model(rng)
    export(model, x, tmp_path / "m.onnx", exporter == "newer", dynamic)
    (want,) = onnxruntime.InferenceSession(str(tmp_path / "m.onnx")).run(None, {"input": x})
    assert_predicts(tmp_path, "m.onnx", x, want)
