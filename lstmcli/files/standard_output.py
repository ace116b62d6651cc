"""Standard output, written like a file that is filled by position, as long as the positions ascend."""

import os
import sys

from lstmcli.errors import StorageError
from lstmcli.files.positioned_file import Data, as_bytes, storing


class StandardOutput:
    """Takes the calls of a Partial. What is left out between two writes comes as zeros."""

    def __init__(self) -> None:
        if sys.stdout is None:
            raise StorageError("standard output: is closed")
        self.at = self.size = 0
        sys.stdout.flush()

    def reserve(self, size: int) -> None:
        self.size = size

    def write(self, data: Data, offset: int) -> None:
        zeros = bytes(min(offset - self.at, 1 << 20))
        while self.at < offset:
            self._put(memoryview(zeros)[: offset - self.at])
        self._put(as_bytes(data))

    def _put(self, view: memoryview) -> None:
        with storing("standard output"):
            while view:
                count = os.write(1, view)
                view, self.at = view[count:], self.at + count

    def start_sync(self) -> None:
        pass

    def sync(self) -> None:
        pass

    def seal(self) -> None:
        self.write(b"", self.size)

    def publish(self) -> None:
        pass

    def close(self) -> None:
        pass

    def discard(self) -> None:
        pass
