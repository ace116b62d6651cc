"""SHA-256 of what is small, of what is large, and in a Python without its own."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Iterator

import pytest

from lstmcli.kernel.native import sha256 as module


@pytest.fixture(params=["own", "none"])
def loaded(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The module as it is loaded where Python has a SHA-256 of its own, and where it has none."""
    if request.param == "none":
        for name in ("_sha2", "_sha256"):
            monkeypatch.setitem(sys.modules, name, None)
        assert importlib.reload(module).own is hashlib.sha256
    yield
    monkeypatch.undo()
    importlib.reload(module)


@pytest.mark.parametrize("size", [0, 1, 1000, module.LARGE - 1, module.LARGE, module.LARGE + 1])
@pytest.mark.parametrize("first", [0, 1, 10**9])
def test_it_is_that_of_hashlib(size: int, first: int, loaded: None) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    begun = module.sha256(data[: min(first, size)], more=max(0, size - first))
    begun.update(data[first:size])
    assert begun.hexdigest() == hashlib.sha256(data[:size]).hexdigest()


def test_python_has_its_own() -> None:
    """Else nothing would be gained, and nobody would know."""
    assert module.own is not hashlib.sha256
