"""Where the service itself may connect to when a tenant names an address: never into the network that it stands in.

A name is resolved once, every address that it stands for is judged, and the connection is made to the very address
that was judged: a name that means something else a moment later changes nothing.
"""

import socket
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

TRANSLATED = IPv6Network("64:ff9b::/96")
"""Addresses behind which a gateway reaches the IPv4 address in their last 32 bits (RFC 6052)."""


class AddressError(Exception):
    """The name cannot be resolved, or leads where nobody may be sent."""


def resolved(host: str, flags: int = 0) -> list[str]:
    """All addresses that a name stands for now, as text, or AddressError; one at least."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=flags)
    except (OSError, UnicodeError) as error:
        raise AddressError(f"{host!r} cannot be resolved: {error}") from error
    # A scope, as in fe80::1%eth0, is no part of what is judged.
    return [str(sockaddr[0]).partition("%")[0] for *_, sockaddr in found]


Resolve = Callable[[str], list[str]]


def reachable(host: str, allowed: Sequence[Network], resolve: Resolve = resolved) -> str:
    """The address to connect to, as text; AddressError when the name stands for any that nobody may be sent to."""
    addresses = resolve(host)
    for address in addresses:
        if not open_to_all(ip_address(address), allowed):
            raise AddressError(f"{host!r} leads to {address}, which is not a public address")
    return addresses[0]


def resolve_literal(host: str) -> Address | None:
    """The address that is written down as one (decimal, octal, ... as the system reads it); None for a name."""
    try:
        return ip_address(resolved(host, socket.AI_NUMERICHOST)[0])
    except AddressError:
        return None


def open_to_all(address: Address, allowed: Sequence[Network]) -> bool:
    """Whether an address, and any that is wrapped up in it, is a public one or lies in an `allowed` network."""
    return all(_public(each) or _within(each, allowed) for each in _unwrapped(address))


def _public(address: Address) -> bool:
    return address.is_global and not address.is_multicast and not address.is_reserved


def _within(address: Address, networks: Sequence[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)


def _unwrapped(address: Address) -> Iterator[Address]:
    if isinstance(address, IPv4Address):
        yield address
        return
    inside = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in TRANSLATED:
        inside.append(IPv4Address(int(address) & 0xFFFFFFFF))
    wrapped = [each for each in inside if each is not None]
    yield from wrapped
    # What is mapped is nothing but the address inside.
    if address.ipv4_mapped is None and address not in TRANSLATED:
        yield address
