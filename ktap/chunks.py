"""A file of chunks: each compressed, with its length and a checksum, so that a file that was cut off, or
damaged, is good up to that place.

    chunks = ChunkWriter(file descriptor); chunks.write(RECORDS, data)
    for kind, data in ChunkReader(file): ...

A chunk is ``kind, compressed size, size, CRC-32 of the compressed bytes`` (`<4sIII`) and those bytes.
"""

from __future__ import annotations

import os
import zlib
from struct import Struct
from typing import BinaryIO, Optional, Tuple

MAGIC = b"\x89ktap recording\r\n\x1a\n"
"""No text, and what a transfer as text would change is in it."""
HEAD = Struct("<4sIII")
MOST_BYTES = 1 << 24
"""Of a chunk, uncompressed."""
LEVEL = 1
"""Of zlib: the fastest; higher ones make recordings a tenth smaller and take three times as long."""


class ChunkWriter:
    """Writes a file of chunks through a descriptor that it owns."""

    def __init__(self, descriptor: int) -> None:
        """Raises OSError."""
        self._descriptor: Optional[int] = descriptor
        self._put(MAGIC)

    def write(self, kind: bytes, data: bytes) -> None:
        """Add a chunk. Raises OSError; then the file is good up to the chunk before."""
        packed = zlib.compress(data, LEVEL)
        self._put(HEAD.pack(kind, len(packed), len(data), zlib.crc32(packed)) + packed)

    def _put(self, data: bytes) -> None:
        assert self._descriptor is not None
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class NoRecording(Exception):
    """A file that is no file of chunks."""


class ChunkReader:
    """Reads a file of chunks; `damage` tells why it ended, None where it ended well so far."""

    def __init__(self, file: BinaryIO) -> None:
        """Raises NoRecording, and OSError."""
        if file.read(len(MAGIC)) != MAGIC:
            raise NoRecording
        self._file = file
        self.damage: Optional[str] = None
        self.position = len(MAGIC)
        """Where the next chunk starts."""

    def read(self) -> Optional[Tuple[bytes, bytes]]:
        """The next chunk's kind and data; None at the end, or where the file is good no further."""
        head = self._file.read(HEAD.size)
        if not head or self.damage is not None:
            return None
        data = self._data(head)
        if data is None:
            return None
        self.position = self._file.tell()
        return head[:4], data

    def last(self) -> Optional[Tuple[bytes, bytes]]:
        """The file's last chunk where all before it are there, found by their heads; reading goes on where it was."""
        here, position, head = self._file.tell(), len(MAGIC), b""
        end = self._file.seek(0, os.SEEK_END)
        while position < end:
            self._file.seek(position)
            head = self._file.read(HEAD.size)
            if len(head) < HEAD.size:
                break
            position += HEAD.size + HEAD.unpack(head)[1]
        found = None
        if head and position == end:
            self._file.seek(end - HEAD.unpack(head)[1])
            data = self._data(head)
            found = None if data is None else (head[:4], data)
            self.damage = None
        self._file.seek(here)
        return found

    def _data(self, head: bytes) -> Optional[bytes]:
        if len(head) < HEAD.size:
            return self._end("is cut off")
        _, packed_bytes, size_bytes, checksum = HEAD.unpack(head)
        if size_bytes > MOST_BYTES or packed_bytes > MOST_BYTES + MOST_BYTES // 100:
            return self._end("is damaged")
        packed = self._file.read(packed_bytes)
        if len(packed) < packed_bytes:
            return self._end("is cut off")
        if zlib.crc32(packed) != checksum:
            return self._end("is damaged")
        unpacker = zlib.decompressobj()
        try:
            data = unpacker.decompress(packed, size_bytes + 1)
        except zlib.error:
            return self._end("is damaged")
        return data if len(data) == size_bytes else self._end("is damaged")

    def _end(self, why: str) -> Optional[bytes]:
        self.damage = f"{why} at byte {self.position}"
        return None
