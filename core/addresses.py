"""Check network addresses that a tenant specifies, before the service connects to them.

Only public addresses and addresses in allowed networks are accepted. A host name is resolved once, all its addresses
are checked, and the connection uses an address that was checked. So it does not help an attacker if the name resolves
to another address a moment later (DNS rebinding).
"""

import socket
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

NAT64 = IPv6Network("64:ff9b::/96")
"""IPv6 networks whose addresses contain an IPv4 address in the last 32 bits.

A NAT64 gateway translates them (RFC 6052).
"""


class AddressError(Exception):
    """A host name cannot be resolved, or resolves to an address that is not allowed."""


def resolve(host: str, flags: int = 0) -> list[str]:
    """Return all addresses of a host name, at least one. Raises AddressError if the name cannot be resolved."""
    try:
        entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=flags)
    except (OSError, UnicodeError) as error:
        raise AddressError(f"{host!r} cannot be resolved: {error}") from error
    # The scope, as in fe80::1%eth0, is not part of the address.
    return [str(sockaddr[0]).partition("%")[0] for *_, sockaddr in entries]


Resolver = Callable[[str], list[str]]


def resolve_public(host: str, allowed: Sequence[Network], resolver: Resolver = resolve) -> str:
    """Return the address to connect to for a host name or an address.

    Raises AddressError if any address of the name is not allowed.
    """
    addresses = resolver(host)
    for address in addresses:
        if not is_allowed(ip_address(address), allowed):
            raise AddressError(
                f"{host!r} resolves to {address}, which is not a public address and not in SEFT_WEBHOOK_NETWORKS"
            )
    return addresses[0]


def resolve_literal(host: str) -> Address | None:
    """Return the IP address if `host` is one, in any notation that the system reads (decimal, octal, ...).

    Returns None if `host` is a name.
    """
    try:
        return ip_address(resolve(host, socket.AI_NUMERICHOST)[0])
    except AddressError:
        return None


def is_allowed(address: Address, allowed: Sequence[Network]) -> bool:
    """Return whether an address is public or in a network of `allowed`.

    If the address contains other addresses, this must be true for each of them.
    """
    return all(_is_public(each) or _is_within(each, allowed) for each in _embedded(address))


def _is_public(address: Address) -> bool:
    # Python counts fec0::/10, the private addresses before fc00::/7 (RFC 3879), as global.
    site_local = isinstance(address, IPv6Address) and address.is_site_local
    return address.is_global and not (address.is_multicast or address.is_reserved or site_local)


def _is_within(address: Address, networks: Sequence[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)


def _embedded(address: Address) -> Iterator[Address]:
    if isinstance(address, IPv4Address):
        yield address
        return
    candidates = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in NAT64:
        candidates.append(IPv4Address(int(address) & 0xFFFFFFFF))
    embedded = [each for each in candidates if each is not None]
    yield from embedded
    # A mapped or translated address leads to the embedded address only.
    if address.ipv4_mapped is None and address not in NAT64:
        yield address
