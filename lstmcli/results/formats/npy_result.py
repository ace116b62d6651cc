"""A result as NPY: the outputs in an NPY file, or as a stream on standard output; the states in an NPZ; the model beside them.

The header of the NPY file is written last, so that nobody takes a part for the whole.
"""

import math
from contextlib import ExitStack

from lstmcli.files.npy import write_header
from lstmcli.files.partial_file import Partial
from lstmcli.files.standard_output import StandardOutput
from lstmcli.files.zip_writer import Npz
from lstmcli.inputs.nonfinite import Nonfinite
from lstmcli.model.model_file import model_image
from lstmcli.model.tree import Model
from lstmcli.results.formats.fields import Arrays, Field, Store
from lstmcli.results.formats.paths import Paths
from lstmcli.results.formats.result import Metadata, Result


class NpyResult(Result):
    """A result in an NPY file and those beside it, laid out with all their space taken."""

    def __init__(self, paths: Paths, arrays: Arrays, metadata: Metadata, overwrite: bool, resume: bool) -> None:
        """resume: keeps what an earlier run has stored. Raises OutputError or StorageError."""
        stores: list[Store] = []
        with ExitStack() as undo:

            def add(store: Store) -> None:
                stores.append(store)
                undo.callback(store.close if resume else store.discard)

            outputs: Store = StandardOutput() if paths.main is None else Partial(paths.main, overwrite, resume)
            add(outputs)
            main = next(name for name in arrays if not name.startswith("state/"))
            shape, dtype = arrays[main]
            stored = metadata.stored_shape(shape)
            self.header = write_header(stored, dtype)
            outputs.reserve(len(self.header) + math.prod(stored) * dtype.itemsize)
            begins = metadata.flat_begins(len(self.header), shape, dtype)
            fields = {main: Field(outputs, len(self.header), shape, dtype, begins)}
            if paths.states is not None:
                states = {name.removeprefix("state/"): array for name, array in arrays.items() if name != main}
                npz = Npz(paths.states, states, overwrite, resume)
                add(npz)
                npz.reserve(npz.size)
                fields |= {f"state/{name}": Field(npz, npz.offsets[name], *array) for name, array in states.items()}
            if paths.model is not None:
                assert isinstance(metadata.model, Model)
                image = model_image(metadata.model)
                model = Partial(paths.model, overwrite, resume)
                add(model)
                model.reserve(len(image))
                model.write(image, 0)
            if paths.main is None:
                outputs.write(self.header, 0)  # a stream begins with it
            undo.pop_all()
        self.is_stream = paths.main is None
        super().__init__(stores, fields, {}, metadata.placed, checked=not self.is_stream)

    def seal(self, nonfinite: Nonfinite | None) -> None:
        if not self.is_stream:
            self.stores[0].write(self.header, 0)
        super().seal(nonfinite)
