"""Where nobody may be sent, however it is spelt."""

from ipaddress import ip_address, ip_network

import pytest

from core.addresses import AddressError, open_to_all, reachable, resolve_literal

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
INSIDE = [
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


@pytest.mark.parametrize("host", LOOPBACK + INSIDE)
def test_what_lies_inside_is_refused_in_every_spelling(host: str) -> None:
    with pytest.raises(AddressError, match="not a public address"):
        reachable(host, [])
    found = resolve_literal(host)
    assert found is not None
    assert not open_to_all(found, [])


@pytest.mark.parametrize("host", PUBLIC)
def test_what_is_public_is_let_through_as_an_address(host: str) -> None:
    assert ip_address(reachable(host, [])) == resolve_literal(host)


@pytest.mark.parametrize("host", LOOPBACK)
def test_an_operator_may_allow_a_network(host: str) -> None:
    allowed = [ip_network("127.0.0.0/8"), ip_network("::1/128")]
    assert reachable(host, allowed)
    with pytest.raises(AddressError):
        reachable("10.0.0.1", allowed)


def test_a_name_is_judged_by_all_that_it_stands_for() -> None:
    assert reachable("both.example", [], lambda _: ["93.184.216.34", "2606:4700::1111"]) == "93.184.216.34"
    with pytest.raises(AddressError, match=r"10\.0\.0\.1"):
        reachable("both.example", [], lambda _: ["93.184.216.34", "10.0.0.1"])


def test_a_name_is_no_address_and_one_that_nobody_knows_is_told() -> None:
    assert resolve_literal("example.com") is None
    for name in ("nothing.invalid", "a" * 64 + ".com", "", "a..b"):
        with pytest.raises(AddressError):
            reachable(name, [])
