"""Addresses that are rejected, in every spelling."""

from ipaddress import ip_address, ip_network

import pytest

from core.addresses import AddressError, is_allowed, resolve_literal, resolve_public

LOOPBACK = [
    "127.0.0.1",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "0177.0.0.1",
    "017700000001",
    "::1",
    "0:0:0:0:0:0:0:1",
    "::ffff:127.0.0.1",
    "::ffff:7f00:1",
]
PRIVATE = [
    "0.0.0.0",
    "10.1.2.3",
    "100.64.0.1",
    "169.254.169.254",
    "172.16.0.1",
    "192.168.0.1",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "fc00::1",
    "fd12:3456::1",
    "fe80::1",
    "fec0::1",
    "feff::1",
    "ff02::1",
    "2001:db8::1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",
    "64:ff9b::a00:1",
    "64:ff9b:1::a00:1",
    "2002:7f00:1::",
    "2002:a00:1::1",
    "2001:0:a00:1::f5ff:fffe",
]
PUBLIC = ["1.1.1.1", "8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]


@pytest.mark.parametrize("host", LOOPBACK + PRIVATE)
def test_private_addresses_are_rejected_in_every_spelling(host: str) -> None:
    with pytest.raises(AddressError, match="not a public address"):
        resolve_public(host, [])
    address = resolve_literal(host)
    assert address is not None
    assert not is_allowed(address, [])


@pytest.mark.parametrize("host", PUBLIC)
def test_public_addresses_are_accepted(host: str) -> None:
    assert ip_address(resolve_public(host, [])) == resolve_literal(host)


@pytest.mark.parametrize("host", LOOPBACK)
def test_an_operator_can_allow_a_network(host: str) -> None:
    allowed = [ip_network("127.0.0.0/8"), ip_network("::1/128")]
    assert resolve_public(host, allowed)
    with pytest.raises(AddressError):
        resolve_public("10.0.0.1", allowed)


def test_all_addresses_of_a_name_are_checked() -> None:
    assert resolve_public("both.example", [], lambda _: ["93.184.216.34", "2606:4700::1111"]) == "93.184.216.34"
    with pytest.raises(AddressError, match=r"10\.0\.0\.1"):
        resolve_public("both.example", [], lambda _: ["93.184.216.34", "10.0.0.1"])


def test_a_name_is_not_a_literal_and_an_unknown_name_is_an_error() -> None:
    assert resolve_literal("example.com") is None
    for name in ("nothing.invalid", "a" * 64 + ".com", "", "a..b"):
        with pytest.raises(AddressError):
            resolve_public(name, [])
