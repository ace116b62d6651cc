"""An input opened without knowing for which model: floats, or else token ids."""

from lstmcli.errors import DataError, UsageError
from lstmcli.inputs.ragged.open_sequences import open_sequences
from lstmcli.inputs.source import Source


def open_floats_or_ids(spec: str, lens: str | None = None, offsets: str | None = None) -> Source:
    """Opens an input as run does, or else as predict does for a model that takes token ids. Raises what run would."""
    try:
        return open_sequences(spec, lens, offsets)
    except (DataError, UsageError) as error:
        try:
            return open_sequences(spec, lens, offsets, token_ids=True)
        except (DataError, UsageError):
            raise error from None
