"""The example of docs/weights.md, from a trained PyTorch model to its accuracy on real speech, as it stands there."""

from __future__ import annotations

from pathlib import Path

from helpers import pages

WEIGHTS = pages.DOCS / "weights.md"


def test_the_example_of_the_page(tmp_path: Path) -> None:
    ran = pages.run_examples(WEIGHTS, tmp_path)
    assert [one.text for one in ran if one.text.startswith("accuracy")] == ["accuracy 0.9595\n"]
    assert "`accuracy 0.9595`" in WEIGHTS.read_text()
    assert (tmp_path / "torch.safetensors").exists()
