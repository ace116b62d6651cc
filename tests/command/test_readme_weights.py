"""The README's example, from a trained PyTorch model to its accuracy on real speech, as it stands there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from helpers import speech
from helpers.command import shell

README = (speech.SAMPLE_DATA.parent / "README.md").read_text()
SECTION = README.split("## Weights from PyTorch, Keras, TensorFlow and ONNX\n")[1].split("\n## ")[0]


def test_the_example_of_the_readme(tmp_path: Path) -> None:
    (tmp_path / "sample_data").symlink_to(speech.SAMPLE_DATA)
    run, *others = re.findall(r"```sh\n(.*?)```", SECTION, re.DOTALL)
    (head,) = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
    ran = shell(run, tmp_path)
    assert ran.code == 0, ran.err
    ran = shell(f'"{sys.executable}" -W error::SyntaxWarning -c "$1"', tmp_path, head)
    assert (ran.code, ran.text) == (0, "accuracy 0.9595\n"), ran.err
    assert "`accuracy 0.9595`" in SECTION
    for lines in others:
        ran = shell(f"set -e; {lines}", tmp_path)
        assert ran.code == 0, ran.err
    assert (tmp_path / "torch.safetensors").exists()
