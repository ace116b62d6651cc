"""The folder of a model: files that its own file stands for are read there, and nowhere else."""

from pathlib import Path


def is_beside(path: Path, model: Path) -> bool:
    """Says whether a file lies in the model's folder or below, or in that of the file which the model is a link to, where the
    caches of model hubs have both. Symbolic links are followed, so that none leads out."""
    return any(real_path(path).is_relative_to(folder) for folder in (real_path(model.parent), real_path(model).parent))


def real_path(path: Path) -> Path:
    """Returns where a path leads; for one that leads nowhere, a place that nothing is in."""
    try:
        return path.resolve()
    except (OSError, ValueError, RuntimeError):
        return Path("/dev/null/nowhere")
