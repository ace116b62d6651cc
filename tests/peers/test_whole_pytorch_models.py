"""`lstmcli predict --chain` against PyTorch: a hundred random modules in a line, of all layers that are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.predictions import MODELS, assert_predicts

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
pytestmark = [
    *(pytest.mark.peers, pytest.mark.slow),
    pytest.mark.filterwarnings("ignore"),  # of PyTorch, which is not under test
]


class Whole(torch.nn.Module):  # type: ignore[misc]
    """What a random line says, as PyTorch runs it without lengths."""

    def __init__(self, modules: dict[str, Any], line: list[str]) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.line = line

    def forward(self, x: Any) -> Any:
        state: Any = None
        for word in self.line:
            module = self._modules.get(word)
            if isinstance(module, torch.nn.LSTM):
                x, (state, _) = module(x)
                both = module.bidirectional
            elif module is not None:
                x = module(x)
            elif word == "final":
                x = torch.cat([state[-2], state[-1]], dim=-1) if both else state[-1]
            elif word in ("last", "mean", "max"):
                x = {"last": x[:, -1], "mean": x.mean(1), "max": x.amax(1)}[word]
            else:
                x = getattr(torch.nn.functional, word)(x, **({"dim": -1} if "softmax" in word else {}))
        return x


def torch_model(rng: np.random.Generator, steps: int) -> tuple[Whole, np.ndarray]:
    nn = torch.nn
    width, count = int(rng.integers(2, 7)), int(rng.integers(1, 7))
    modules: dict[str, Any] = {}
    line: list[str] = []

    def add(name: str, module: Any) -> None:
        modules[name] = module
        line.append(name)

    if rng.random() < 0.5:
        add("embedding", nn.Embedding(12, width))
        x = rng.integers(0, 12, (count, steps))
    else:
        x = rng.normal(size=(count, steps, width)).astype(np.float32)
        if rng.random() < 0.5:
            add("inp", nn.Linear(width, width := int(rng.integers(2, 7))))
            line.append(str(rng.choice(["relu", "tanh", "gelu", "silu", "elu"])))
    if rng.random() < 0.3:
        add("norm", nn.LayerNorm(width))
    both = bool(rng.integers(2))
    units = int(rng.integers(1, 6))
    add("rnn", nn.LSTM(width, units, int(rng.integers(1, 3)), batch_first=True, bidirectional=both))
    width = units * (2 if both else 1)
    if rng.random() < 0.8:
        line.append(str(rng.choice(["final", "last", "mean", "max"])))
    add("fc", nn.Linear(width, 5))
    line.append(str(rng.choice(["relu", "sigmoid", "softplus", "leaky_relu", "selu"])))
    add("out", nn.Linear(5, 3, bias=bool(rng.integers(2))))
    line += [["softmax"], ["log_softmax"], []][rng.integers(3)]
    model = Whole(modules, line)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.tensor(rng.normal(0, 0.5, parameter.shape)))
    return model, x


@pytest.mark.parametrize("seed", range(MODELS))
def test_pytorch(seed: int, tmp_path: Path) -> None:
    model, x = torch_model(np.random.default_rng(seed), steps=6)
    torch.save(model.state_dict(), tmp_path / "m.pt")
    with torch.no_grad():
        want = model(torch.tensor(x)).numpy()
    assert_predicts(tmp_path, "m.pt", x, want, "--chain", ", ".join(model.line))
