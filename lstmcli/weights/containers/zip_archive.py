"""ZIP archives as PyTorch and Keras write them, uncompressed; members are read into memory and never extracted."""

import os
import zipfile

from lstmcli.errors import DataError, shown
from lstmcli.files.zip_reader import reading_zip

DESCRIBING = 1 << 26  # bytes of a member that describes a model; a sparse file may claim any number of zeros


class Archive:
    def __init__(self, fd: int, where: str) -> None:
        """Reads the directory of an open file; `fd` stays the caller's."""
        self.where = where
        self.size = os.fstat(fd).st_size
        self.raw = os.fdopen(os.dup(fd), "rb")
        try:
            with reading_zip(where):
                self.file = zipfile.ZipFile(self.raw)
            self.members = {member.filename: member for member in self.file.infolist()}
            if len(self.members) != len(self.file.infolist()):
                raise DataError(f"{where}: damaged: two members of one name")
        except BaseException:
            self.raw.close()
            raise

    def close(self) -> None:
        self.file.close()
        self.raw.close()

    def describe(self, name: str) -> bytes:
        """As read(), of a member that describes the others. DataError where it is larger than that can be."""
        if name in self.members and (size := self.members[name].file_size) > DESCRIBING:
            raise DataError(
                f"{self.where}, member {shown(name)}: expected at most {DESCRIBING:,} bytes that describe a model, got {size:,}"
            )
        return self.read(name)

    def read(self, name: str) -> bytes:
        """A whole member, its CRC checked. DataError: missing, compressed, damaged, or larger than the archive."""
        where = f"{self.where}, member {shown(name)}"
        if name not in self.members:
            raise DataError(f"{where}: missing; was the file cut or packed by hand?")
        member = self.members[name]
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise DataError(f"{where}: compressed or encrypted, which its framework never does; pack it again with: zip -0")
        if member.file_size != member.compress_size or member.file_size > self.size:
            raise DataError(f"{where}: damaged: claims {member.file_size} bytes, the archive has {self.size}")
        with reading_zip(where):
            return self.file.read(member)
