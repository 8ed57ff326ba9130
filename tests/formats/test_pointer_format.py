"""Addresses, bit maps and errors as the kernel's printf writes them behind `%p`."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktap import pointer_format


@given(st.binary(min_size=16, max_size=16))
def test_compressed_addresses_are_those_of_the_c_library(data: bytes) -> None:
    text = pointer_format.ipv6_compressed(data).decode()
    assert socket.inet_pton(socket.AF_INET6, text) == data


@given(st.lists(st.sampled_from([0, 1, 0x20]), min_size=8, max_size=8))
def test_compressed_addresses_with_many_zeros(groups: list[int]) -> None:
    data = struct.pack(">8H", *groups)
    text = pointer_format.ipv6_compressed(data).decode()
    assert socket.inet_pton(socket.AF_INET6, text) == data
    assert text.count("::") <= 1


@pytest.mark.parametrize(
    ("data", "options", "expected"),
    [
        (struct.pack("=H", socket.AF_INET) + b"\x1f\x90\x01\x02\x03\x04", "Ipc", b"1.2.3.4:8080"),
        (struct.pack("=H", socket.AF_INET) + b"\x1f\x90\x01\x02\x03\x04", "ip", b"001.002.003.004:8080"),
        (struct.pack("=H", socket.AF_INET), "I", b"0.0.0.0"),
        (struct.pack("=H", socket.AF_INET6) + b"\0\x50" + bytes(4) + bytes(15) + b"\1" + bytes(4), "Ipc", b"[::1]:80"),
        (
            struct.pack("=H", socket.AF_INET6) + bytes(2) + b"\0\0\0\5" + bytes(16) + struct.pack("=I", 3),
            "Ifsc",
            b"[::]/5%3",
        ),
        (struct.pack("=H", socket.AF_INET6), "I", b"0000:0000:0000:0000:0000:0000:0000:0000"),
        (struct.pack("=H", socket.AF_INET6), "i", b"0" * 32),
        (b"", "I", b"(invalid address)"),
        (struct.pack("=H", 77), "I", b"(invalid address)"),
    ],
)
def test_socket_addresses(data: bytes, options: str, expected: bytes) -> None:
    assert pointer_format.socket_address(data, options) == expected


@given(st.binary(min_size=1, max_size=20), st.integers(0, 160))
def test_bit_lists_are_bit_maps(data: bytes, bits: int) -> None:
    bits = min(bits, 8 * len(data))
    value = int.from_bytes(data, "little") & ((1 << bits) - 1)
    listed = set()
    for part in pointer_format.bitmap_list(data, bits).decode().split(","):
        if part:
            first, _, last = part.partition("-")
            listed |= set(range(int(first), int(last or first) + 1))
    assert listed == {bit for bit in range(bits) if value >> bit & 1}
    shown = pointer_format.bitmap(data, bits).replace(b",", b"")
    assert int(shown or b"0", 16) == value


def test_errors_by_name() -> None:
    assert pointer_format.error_name((1 << 64) - 13) == b"-EACCES"
    assert pointer_format.error_name((1 << 64) - 4000) == b"-4000"
    assert pointer_format.error_name(5) is None
