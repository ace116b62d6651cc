"""The sequences of a file, told by what is in it, or of several: a folder, a pattern, a list of names, or several --input."""

import codecs
import glob
import hashlib
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from lstmcli.blocks import holds_floats
from lstmcli.errors import ChangedDataError, DataError, MissingInputError, UsageError, shown
from lstmcli.files.file_kind import FileKind, is_several, open_by_kind
from lstmcli.files.npy import NpyArray
from lstmcli.files.positioned_file import FileBytes, open_readable
from lstmcli.inputs.ragged.arrow import in_table, is_arrow
from lstmcli.inputs.ragged.kaldi import in_ark, is_ark, is_scp, matrix_at, places_in_scp
from lstmcli.inputs.ragged.placed import DECODED, Found, Sequences, gathered, sequences_among
from lstmcli.inputs.ragged.tensors import LastArchive, in_safetensors, in_zip, is_safetensors

OPEN = 64  # files that are open at a time
LIST_LIMIT = 1 << 30  # bytes of a list of names
HEAD = 4096  # bytes by which the form of a file is told


class KnownFile(NamedTuple):
    """A file and what it was when it was looked at."""

    path: str
    size: int
    modified_ns: int

    def check(self, now: os.stat_result) -> None:
        """Raises ChangedDataError where it is not what it was."""
        if (now.st_size, now.st_mtime_ns) != (self.size, self.modified_ns):
            raise ChangedDataError(f"{shown(self.path)}: was changed while it was read; run again when nothing writes to it")


class JoinedFiles:
    """Several files as one, one after the other; each is open only while it is read."""

    sequential = False

    def __init__(self, parts: Sequence[KnownFile]) -> None:
        self.parts = list(parts)
        self.begins = [0, *accumulate(part.size for part in parts)]
        self.open: OrderedDict[int, FileBytes] = OrderedDict()

    def fetch(self, view: memoryview, offset: int) -> None:
        while len(view):
            number = bisect_right(self.begins, offset) - 1
            size = min(len(view), self.begins[number + 1] - offset)
            self._opened(number).fetch(view[:size], offset - self.begins[number])
            view, offset = view[size:], offset + size

    def _opened(self, number: int) -> FileBytes:
        """Returns a file, open. Raises DataError where it is not what it was when it was looked at."""
        file = self.open.pop(number, None)
        if file is None:
            if len(self.open) == OPEN:
                os.close(self.open.popitem(last=False)[1].fd)
            file = FileBytes(open_readable(self.parts[number].path), shown(self.parts[number].path))
            self.parts[number].check(file.opened)
        self.open[number] = file
        return file

    def stop(self) -> None:
        """Does nothing: files never wait for long."""

    def finish(self) -> None:
        for part in self.parts:
            part.check(Path(part.path).stat())

    def close(self) -> None:
        for file in self.open.values():
            os.close(file.fd)
        self.open.clear()

    def identity(self) -> dict[str, Any]:
        whole = hashlib.sha256()
        for part in self.parts:
            about = (Path(part.path).name, part.size, part.modified_ns)
            whole.update(repr(about).encode("utf-8", "surrogateescape"))
        return {"files": len(self.parts), "bytes": self.begins[-1], "names, sizes and times": whole.hexdigest()[:16]}


def names_of(specs: Sequence[str]) -> list[str]:
    """Returns the files that some --input name, sorted by their names. Raises MissingInputError, DataError and UsageError."""
    if "-" in specs and len(specs) > 1:
        raise UsageError(f"--input: standard input (-) is one of {len(specs)} inputs; give it alone")
    found = [path for spec in specs for path in files_of(spec)]
    try:  # absolute, because a plan and the workers of a cluster have absolute names, and must find the same order
        return sorted(found, key=lambda path: (Path(path).name, str(Path(path).absolute())))
    except FileNotFoundError as error:
        raise MissingInputError(f"{shown(specs[0])}: the working folder was deleted; go to another one") from error


def files_of(spec: str) -> list[str]:
    if not is_several(spec):
        return [spec]
    where = shown(spec)
    try:
        if Path(spec).is_dir():
            found = [entry.path for entry in os.scandir(spec) if entry.is_file() and not entry.name.startswith(".")]
        elif spec.startswith("@"):
            found = read_list(Path(spec[1:]))
        else:
            found = [path for path in glob.glob(spec, recursive=True) if not Path(path).is_dir()]  # noqa: PTH207
    except OSError as error:
        raise MissingInputError(f"{where}: cannot be opened: {error.strerror}") from error
    if not found:
        raise MissingInputError(f"{where}: names no file")
    return found


def read_list(path: Path) -> list[str]:
    """Returns the names in a text, one a line, relative to its folder."""
    with path.open("rb") as file:
        content = file.read(LIST_LIMIT + 1)
    if b"\0" in content or len(content) > LIST_LIMIT:
        raise DataError(f"@{shown(str(path))}: expected a text with the name of a file on each line")
    names = [line.strip() for line in content.removeprefix(codecs.BOM_UTF8).splitlines()]  # of bytes: not at U+2028
    return [str(path.parent / os.fsdecode(name)) for name in names if name]


def in_one_file(
    file: FileBytes, path: str, kind: FileKind, name: str | None, token_ids: bool, files: ExitStack
) -> Sequences | None:
    """Returns the sequences of a file that is open; None: it holds something else."""
    if kind is FileKind.OTHER:
        head = file.take(0, min(HEAD, file.opened.st_size))
        if is_arrow(head):
            return in_table(file, path, head, name and name.lstrip("/"), token_ids, files)
        if is_scp(head):
            return in_scp(file, path, files, token_ids)
    found = arrays_in(file, path, kind, name, LastArchive(files))
    if not sequences_among(found, token_ids) or any(len(one.shape) > 2 and holds_floats(one.dtype) for one in found):
        return None
    sequences = gathered(file, file.name, found, file.opened.st_size, token_ids)
    if kind is FileKind.NPY:
        note = f"{file.name}: {found[0].shape} is taken as one sequence; --lens or --offsets divides it into several"
        return sequences._replace(notes=(note,))
    return sequences


def in_several_files(specs: Sequence[str], name: str | None, token_ids: bool, files: ExitStack) -> Sequences:
    """Returns the sequences of all files that some --input name, sorted by their names. Raises DataError, MissingInputError."""
    archives, parts, arrays = LastArchive(files), [], []
    begin = 0
    for path in names_of(specs):
        with open_by_kind(path) as (file, kind):
            found = arrays_in(file, path, kind, name, archives)
            if not found:
                raise DataError(
                    f"{file.name}: expected a sequence: NPY, NPZ, safetensors, or what torch.save() writes; name others out: "
                    "'FOLDER/*.npy'"
                )
            arrays += [one._replace(offset=one.offset if one.offset == DECODED else begin + one.offset) for one in found]
            parts.append(KnownFile(path, file.opened.st_size, file.opened.st_mtime_ns))
            begin += file.opened.st_size
    data = JoinedFiles(parts)
    files.callback(data.close)
    where = shown(specs[0]) if len(specs) == 1 else f"{shown(specs[0])} and {len(specs) - 1} more"
    return gathered(data, where, arrays, begin, token_ids)


def whole_npy(path: str) -> NDArray[Any]:
    """Returns an array (L, E) that is stored by columns."""
    with open_by_kind(path) as (file, _):
        array = NpyArray(file.fetch, file.name)
        return array.rows(0, array.shape[0])


def arrays_in(file: FileBytes, path: str, kind: FileKind, name: str | None, archives: LastArchive) -> list[Found]:
    """Lists the arrays of a file that may be sequences; none of another kind of file. name: only this one."""
    member = name and name.lstrip("/")
    if kind is FileKind.NPY and member is None:
        array = NpyArray(file.fetch, file.name)
        array.check_size(file.opened.st_size)
        turned = array.fortran and len(array.shape) == 2
        place = DECODED if turned else array.offset
        return [Found(file.name, Path(path).stem, array.shape, array.dtype, place, partial(whole_npy, path))]
    if kind is FileKind.ZIP:
        return in_zip(file, path, member, archives)
    if kind is not FileKind.OTHER:
        return []
    head = file.take(0, min(HEAD, file.opened.st_size))
    if is_safetensors(head, file.opened.st_size):
        return in_safetensors(file, path, member)
    return in_ark(file, path) if is_ark(head) else []


def in_scp(file: FileBytes, path: str, files: ExitStack, token_ids: bool) -> Sequences:
    """Returns the matrices that an .scp of Kaldi names. Their files are found from here, or from the folder of the .scp."""
    size = file.opened.st_size
    if size > LIST_LIMIT:
        raise DataError(f"{file.name}: expected an .scp of at most {LIST_LIMIT} bytes, got {size}")
    places = places_in_scp(file.take(0, size), file.name, Path(path).parent)
    archives: dict[str, list[int]] = {}
    for k, (_, name, _) in enumerate(places):
        archives.setdefault(name, []).append(k)
    arrays: dict[int, Found] = {}
    parts, begin = [], 0
    for name, rows in archives.items():
        with open_by_kind(name) as (archive, _):
            for k in rows:
                one, _ = matrix_at(archive, name, places[k][0], places[k][2])
                arrays[k] = one._replace(offset=one.offset if one.offset == DECODED else begin + one.offset)
            parts.append(KnownFile(name, archive.opened.st_size, archive.opened.st_mtime_ns))
            begin += archive.opened.st_size
    data = JoinedFiles(parts)
    files.callback(data.close)
    return gathered(data, file.name, [arrays[k] for k in range(len(places))], begin, token_ids)
