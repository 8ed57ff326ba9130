"""The `net` library: addresses of sockets and of the network."""

from __future__ import annotations

import sys
from typing import Optional, Union

from vm.fault import Fault
from vm.library.builtin import Machine, builtin
from vm.library.foreign import cast
from vm.values import Cdata


def socket_address(machine: Machine, name: str, sk: Union[int, Cdata, None], *path: str) -> Optional[int]:
    """A member of the kernel's `struct sock` at sk, as it lies in memory (network byte order)."""
    if sk is None:
        return None
    try:
        value = cast(machine, 0, b"struct sock *", sk)
        for member in path:
            value = value.member(member.encode()) if isinstance(value, Cdata) else None
    except Fault as fault:
        if fault.kind != "argument":
            raise
        raise Fault("argument", f"{name}: `struct sock` cannot be looked into", fault.message) from None
    return value if isinstance(value, int) else None


@builtin("net.ip_sock_saddr", "sk?: integer|cdata", "integer", ("event", "argument"))
def ip_sock_saddr(machine: Machine, depth: int, sk: Union[int, Cdata, None] = None) -> Optional[int]:
    """the IPv4 address this end of a `struct sock *` is bound to, in network byte order"""
    return socket_address(machine, "net.ip_sock_saddr", sk, "__sk_common", "skc_rcv_saddr")


@builtin("net.ip_sock_daddr", "sk?: integer|cdata", "integer", ("event", "argument"))
def ip_sock_daddr(machine: Machine, depth: int, sk: Union[int, Cdata, None] = None) -> Optional[int]:
    """the IPv4 address of the other end of a `struct sock *`, in network byte order"""
    return socket_address(machine, "net.ip_sock_daddr", sk, "__sk_common", "skc_daddr")


@builtin("net.format_ip_addr", "ip?: integer", "string")
def format_ip_addr(machine: Machine, depth: int, ip: Optional[int] = None) -> Optional[bytes]:
    """an IPv4 address in network byte order as text: `127.0.0.1`"""
    return None if ip is None else dotted((ip & 0xFFFFFFFF).to_bytes(4, sys.byteorder))


@builtin("net.ntop", "address?: integer|string", "string")
def ntop(machine: Machine, depth: int, address: Union[int, bytes, None] = None) -> Optional[bytes]:
    """an address as text: an integer or 4 bytes are IPv4, 16 bytes are IPv6"""
    if address is None or isinstance(address, int):
        return format_ip_addr(machine, depth, address)
    if len(address) == 4:
        return dotted(address)
    if len(address) == 16:
        from socket import AF_INET6, inet_ntop

        return inet_ntop(AF_INET6, address).encode()
    raise Fault("argument", f"net.ntop: {len(address)} bytes are no address", "IPv4 has 4 bytes, IPv6 16")


def dotted(address: bytes) -> bytes:
    """Four bytes as numbers with dots between."""
    return b"%d.%d.%d.%d" % tuple(address)
