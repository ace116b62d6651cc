"""Which checkpoint is meant by a folder of TensorFlow's, or by one of the files in it."""

import re
from pathlib import Path

from lstmcli.errors import DataError, shown

WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".keras", ".h5", ".hdf5", ".onnx")
NEWEST = re.compile(rb'^model_checkpoint_path: "((?:[^"\\\n]|\\.)*)"', re.MULTILINE)
MAX_TEXT = 1 << 20  # bytes of a `checkpoint`
MANY = 10


def index_of(path: str) -> str:
    """The X.index of the newest checkpoint in a folder, or of a SavedModel. DataError: there is none, or several.

    path: the folder, or a file in it; a file that only has the name of one of TensorFlow's is given back.
    """
    place = Path(path)
    folder, name = (place, "") if place.is_dir() else (place.parent, place.name)
    where = shown(path)
    if name and not place.is_file():
        return path
    if name != "checkpoint" and (folder / "saved_model.pb").is_file():
        index = folder / "variables" / "variables.index"
        if not index.is_file():
            raise DataError(
                f"{where}: a SavedModel, whose weights are in variables/ beside saved_model.pb; that is missing here"
            )
        return str(index)
    if name not in ("", "checkpoint"):
        return path
    if (folder / "checkpoint").is_file():
        with (folder / "checkpoint").open("rb") as file:
            newest = NEWEST.search(file.read(MAX_TEXT))
        if newest:
            return newest_index(folder, newest[1].decode("utf-8", "backslashreplace"), where)
        if name:
            return path
    found = indices(folder)
    if len(found) == 1:
        return str(folder / found[0])
    if found:
        raise DataError(f"{where}: holds {len(found)} checkpoints; give one of them: ", listed(found))
    held = sorted(entry.name for entry in folder.iterdir())
    weights = [name for name in held if name.endswith(WEIGHTS)]
    raise DataError(
        f"{where}: expected a file of weights, or a folder with a checkpoint or SavedModel of TensorFlow; got one with ",
        listed(weights or held),
        "; give one of them" * bool(weights),
    )


def newest_index(folder: Path, called: str, where: str) -> str:
    """Of the checkpoint that a `checkpoint` names, beside it: a folder is often copied without its path."""
    name = re.split(r"[/\\\\]", called)[-1]
    index = folder / f"{name}.index"
    if name and index.is_file():
        return str(index)
    raise DataError(
        f"{where}: its newest checkpoint is {shown(name)}, but there is no {shown(name)}.index; "
        "copy it, or give one of these: ",
        listed(indices(folder)),
    )


def indices(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".index") and entry.is_file())


def listed(names: list[str]) -> list[str]:
    more = [f"and {len(names) - MANY} more"] if len(names) > MANY else []
    return [*map(shown, names[:MANY]), *more] if names else ["nothing"]
