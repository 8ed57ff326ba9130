"""The kernel's own printf conversions: what stands behind `%p`, from the bytes or the address it is given.

Source: Documentation/core-api/printk-formats.rst and lib/vsprintf.c.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import Callable, Optional, Protocol, Sequence

WIDTH_LIMIT = 4096
"""Widest field that is padded to, in characters; no format of the kernel's reaches it."""


class KernelNames(Protocol):
    """What the text of an event needs of the kernel besides its record."""

    def symbol(self, address: int) -> bytes:
        """`vfs_read+0x9e/0x150 [module]`, hexadecimal where there is no symbol (`%pS`)."""

    def symbol_name(self, address: int) -> bytes:
        """The same without offset and size (`%ps`)."""

    def string(self, address: int) -> bytes:
        """The C string at an address of the kernel's constant data (`%s` of a pointer)."""

    def pointer(self, address: int) -> bytes:
        """What `%p` shows for an address: 16 digits, a hash of it unless hashing is off."""

    def constant(self, name: str) -> Optional[int]:
        """A constant of the kernel: an enumerator, `sizeof(struct page)`, `vmemmap_base`; None where there is none."""


def ipv4(data: bytes, leading_zeros: bool = False) -> bytes:
    """`%pI4`: 127.0.0.1; `%pi4`: 127.000.000.001."""
    return b".".join((b"%03d" if leading_zeros else b"%d") % byte for byte in data[:4])


def ipv6(data: bytes) -> bytes:
    """`%pI6`: eight groups of four digits; `%pi6` leaves the colons out."""
    return b":".join(b"%02x%02x" % (data[i], data[i + 1]) for i in range(0, 16, 2))


def ipv6_compressed(data: bytes) -> bytes:
    """`%pI6c`: the longest run of zero groups as `::`, embedded IPv4 addresses with dots."""
    embedded = data[:12] == bytes(10) + b"\xff\xff" or (data[8:12] in (b"\0\0\x5e\xfe", b"\2\0\x5e\xfe"))
    count = 6 if embedded else 8
    groups = [data[2 * i] << 8 | data[2 * i + 1] for i in range(count)]
    start, length = _longest_zero_run(groups)
    parts: list[bytes] = []
    text = b""
    index, need_colon = 0, False
    while index < count:
        if length > 1 and index == start:
            if need_colon or index == 0:
                text += b":"
            text += b":"
            need_colon = False
            index += length
            continue
        if need_colon:
            text += b":"
        text += b"%x" % groups[index]
        need_colon = True
        index += 1
    parts.append(text)
    if embedded:
        parts.append((b":" if need_colon else b"") + ipv4(data[12:]))
    return b"".join(parts)


def _longest_zero_run(groups: Sequence[int]) -> tuple[int, int]:
    """Start and length of the first longest run of zeros."""
    best, index = (-1, 0), 0
    while index < len(groups):
        end = index
        while end < len(groups) and groups[end] == 0:
            end += 1
        if end - index > best[1]:
            best = (index, end - index)
        index = max(end, index + 1)
    return best


def socket_address(data: bytes, options: str) -> bytes:
    """`%pIS…`, `%piS…`: a struct sockaddr; options p port, f flow info, s scope, c compressed."""
    family = struct.unpack_from("=H", data.ljust(2, b"\0"))[0]
    if family == socket.AF_INET:
        data = data.ljust(8, b"\0")
        text = ipv4(data[4:8], "i" in options)
        return text + b":%d" % _port(data) if "p" in options else text
    if family != socket.AF_INET6:
        return b"(invalid address)"
    data = data.ljust(28, b"\0")
    flow, scope = data[4:8], struct.unpack_from("=I", data, 24)[0]
    text = _family6(data[8:24], options)
    if any(c in options for c in "pfs"):
        text = b"[" + text + b"]"
    if "p" in options:
        text += b":%d" % _port(data)
    if "f" in options:
        text += b"/%d" % (int.from_bytes(flow, "big") & 0x0FFFFFFF)
    if "s" in options:
        text += b"%%%d" % scope
    return text


def _family6(address: bytes, options: str) -> bytes:
    if "c" in options and "i" not in options:
        return ipv6_compressed(address)
    return ipv6(address).replace(b":", b"") if "i" in options else ipv6(address)


def _port(data: bytes) -> int:
    return data[2] << 8 | data[3]


def mac(data: bytes, options: str) -> bytes:
    """`%pM` with colons, `%pMF` with dashes, `%pMR` reversed, `%pm` without separators."""
    ordered = data[5::-1] if "R" in options else data[:6]
    separator = b"" if options[0] == "m" else b"-" if "F" in options else b":"
    return separator.join(b"%02x" % byte for byte in ordered)


def uuid(data: bytes, options: str) -> bytes:
    """`%pUb` (as is) and `%pUl` (little-endian fields), `B` and `L` in capitals."""
    data = data[:16].ljust(16, b"\0")
    if options[:1] in ("l", "L"):
        data = data[3::-1] + data[5:3:-1] + data[7:5:-1] + data[8:]
    digits = data.hex().encode()
    text = b"-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
    return text.upper() if options[:1] in ("B", "L") else text


def hex_bytes(data: bytes, options: str) -> bytes:
    """`%*ph` with spaces, `C` colons, `D` dashes, `N` nothing; at most 64 bytes, as in the kernel."""
    separator = {"C": b":", "D": b"-", "N": b""}.get(options[:1], b" ")
    return separator.join(b"%02x" % byte for byte in data[:64])


def bitmap(data: bytes, bits: int) -> bytes:
    """`%*pb`: words of 32 bits in hexadecimal, highest first, separated by commas."""
    value = int.from_bytes(data, "little") & ((1 << bits) - 1)
    groups = []
    for low in range((bits - 1) // 32 * 32, -1, -32) if bits else ():
        width = min(bits - low, 32)
        groups.append(b"%0*x" % ((width + 3) // 4, value >> low & 0xFFFFFFFF))
    return b",".join(groups)


def bitmap_list(data: bytes, bits: int) -> bytes:
    """`%*pbl`: ranges of set bits, `0-3,8`."""
    value = int.from_bytes(data, "little") & ((1 << bits) - 1)
    ranges, bit = [], 0
    while value >> bit:
        if not value >> bit & 1:
            bit += 1
            continue
        end = bit
        while value >> (end + 1) & 1:
            end += 1
        ranges.append(b"%d" % bit if end == bit else b"%d-%d" % (bit, end))
        bit = end + 1
    return b",".join(ranges)


def error_name(value: int) -> Optional[bytes]:
    """`%pe`: -ENOENT; None for an address that is no error."""
    number = (1 << 64) - value
    if not 0 < number < 4096:
        return None
    name = errno.errorcode.get(number)
    return b"%d" % -number if name is None else b"-" + name.encode()


def for_bytes(options: str) -> Optional[Callable[[bytes], bytes]]:
    """The function that prints the bytes of `%pOPTIONS`; None where it takes no bytes of the record."""
    head = options[:2]
    if head in ("I4", "i4"):
        return lambda data: ipv4(data, options[0] == "i")
    if options[:3] == "I6c":
        return ipv6_compressed
    if head in ("I6", "i6"):
        return lambda data: ipv6(data) if options[0] == "I" else ipv6(data).replace(b":", b"")
    if head in ("IS", "iS"):
        return lambda data: socket_address(data, options[0] + options[2:])
    if options[:1] in ("M", "m"):
        return lambda data: mac(data, options)
    if options[:1] == "U":
        return lambda data: uuid(data, options[1:])
    return None


def for_counted(options: str) -> Optional[Callable[[bytes, int], bytes]]:
    """The function for `%*pOPTIONS`, which is given the bytes and the width."""
    if options[:1] == "h":
        return lambda data, width: hex_bytes(data[: max(width, 0)], options[1:])
    if options[:2] == "bl":
        return lambda data, width: bitmap_list(data, max(min(width, 8 * len(data)), 0))
    if options[:1] == "b":
        return lambda data, width: bitmap(data, max(min(width, 8 * len(data)), 0))
    return None


def for_address(options: str, names: KernelNames) -> Optional[Callable[[int], bytes]]:
    """The function for `%pOPTIONS` of an address itself."""
    if options == "" or options == "K":
        return names.pointer
    if options[0] == "x":
        return lambda address: b"%016x" % address
    if options[0] in "SFB":
        return names.symbol
    if options[0] in "sf":
        return names.symbol_name
    if options[0] == "e":
        return lambda address: error_name(address) or names.pointer(address)
    return None


KNOWN_OPTIONS = "SsFfBRrbMmIiEUVKNadDghGtCxueO"
"""Letters that make a conversion of their own behind `%p` (lib/vsprintf.c, pointer()); any other is text that follows it."""
