"""Messages and memory between this process and its ranks: Unix sockets in a folder that nobody else can enter."""

from __future__ import annotations

import math
import mmap
import os
import pickle
import socket
import struct
from collections.abc import Sequence
from typing import Any

import torch

_HEADER = struct.Struct(">QB")


class ClosedError(Exception):
    """The other side has ended."""


class Channel:
    """One connection; both sides trust each other."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: Any, regions: Sequence[Region] = ()) -> None:
        """Send a message, and with it memory that the other side may then use too.

        Raises:
            ClosedError: the other side has ended.
        """
        data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        try:
            socket.send_fds(
                self._socket, [_HEADER.pack(len(data), len(regions))], [each.descriptor for each in regions]
            )
            self._socket.sendall(data)
        except OSError as error:
            raise ClosedError(str(error)) from error

    def receive(self) -> tuple[Any, list[Region]]:
        """Wait for a message; returns it, and the memory that came with it.

        Raises:
            ClosedError: the other side has ended.
        """
        try:
            header, descriptors, _, _ = socket.recv_fds(self._socket, _HEADER.size, 16)
        except OSError as error:
            raise ClosedError(str(error)) from error
        header += self._read(_HEADER.size - len(header))
        length, _ = _HEADER.unpack(header)
        # From a process that this one has started, or from the one that has started it.
        message = pickle.loads(self._read(length))
        return message, [Region(each) for each in descriptors]

    def close(self) -> None:
        self._socket.close()

    def _read(self, count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            try:
                part = self._socket.recv(min(count - len(parts), 2**20))
            except OSError as error:
                raise ClosedError(str(error)) from error
            if not part:
                raise ClosedError("the connection has ended")
            parts += part
        return bytes(parts)


class Region:
    """Memory that several processes see; it needs no room in /dev/shm, and goes with the last of them."""

    def __init__(self, descriptor: int) -> None:
        """Args: descriptor: of the memory, which this object closes."""
        self.descriptor = descriptor

    @classmethod
    def new(cls, num_bytes: int = 0) -> Region:
        """Return new memory; pages of it are taken when they are first written."""
        region = cls(os.memfd_create("lightx2v"))
        region.resize(num_bytes)
        return region

    @classmethod
    def of_floats(cls, shape: Sequence[int]) -> Region:
        """Return new memory for what `floats` returns of this shape."""
        return cls.new(4 * math.prod(shape))

    def resize(self, num_bytes: int) -> None:
        """Let it be so large, for all who see it."""
        os.ftruncate(self.descriptor, num_bytes)

    def tensor(self, num_bytes: int) -> torch.Tensor:
        """Return it as uint8 [num_bytes], which begins at a page."""
        mapped = mmap.mmap(self.descriptor, max(num_bytes, 1))
        return torch.frombuffer(mapped, dtype=torch.uint8, count=num_bytes)

    def floats(self, shape: Sequence[int]) -> torch.Tensor:
        """Return its beginning as fp32 of this shape."""
        return self.tensor(4 * math.prod(shape)).view(torch.float32).view(*shape)

    def close(self) -> None:
        """Close the descriptor; what is mapped stays."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __del__(self) -> None:
        self.close()
