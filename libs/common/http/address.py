"""Which addresses guarded calls may reach: the public internet and the networks an operator listed. Pure."""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from libs.common.http.errors import Reason

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# Endpoints that hand out credentials inside clouds; Azure's looks like a public address.
_METADATA: frozenset[Address] = frozenset(
    {
        IPv4Address("169.254.169.254"),  # AWS, Google, Azure, OpenStack, DigitalOcean, Hetzner
        IPv4Address("169.254.170.2"),  # AWS ECS task credentials
        IPv4Address("169.254.170.23"),  # AWS EKS pod identity
        IPv4Address("168.63.129.16"),  # Azure WireServer
        IPv4Address("100.100.100.200"),  # Alibaba
        IPv4Address("192.0.0.192"),  # Oracle
        IPv6Address("fd00:ec2::254"),  # AWS
        IPv6Address("fd00:ec2::23"),  # AWS EKS pod identity
        IPv6Address("fd20:ce::254"),  # Google
    }
)

# IANA IPv4 special-purpose registry (RFC 6890) and class D/E; the first match gives the reason.
_IPV4 = tuple(
    (IPv4Network(network), reason)
    for network, reason in (
        ("0.0.0.0/8", Reason.ADDRESS_UNSPECIFIED),
        ("10.0.0.0/8", Reason.ADDRESS_PRIVATE),
        ("100.64.0.0/10", Reason.ADDRESS_SHARED),
        ("127.0.0.0/8", Reason.ADDRESS_LOOPBACK),
        ("169.254.0.0/16", Reason.ADDRESS_LINK_LOCAL),
        ("172.16.0.0/12", Reason.ADDRESS_PRIVATE),
        ("192.0.0.0/24", Reason.ADDRESS_RESERVED),
        ("192.0.2.0/24", Reason.ADDRESS_DOCUMENTATION),
        ("192.88.99.0/24", Reason.ADDRESS_RESERVED),
        ("192.168.0.0/16", Reason.ADDRESS_PRIVATE),
        ("198.18.0.0/15", Reason.ADDRESS_BENCHMARKING),
        ("198.51.100.0/24", Reason.ADDRESS_DOCUMENTATION),
        ("203.0.113.0/24", Reason.ADDRESS_DOCUMENTATION),
        ("224.0.0.0/4", Reason.ADDRESS_MULTICAST),
        ("255.255.255.255/32", Reason.ADDRESS_BROADCAST),
        ("240.0.0.0/4", Reason.ADDRESS_RESERVED),
    )
)

# IANA IPv6 special-purpose registry. What no row names is refused too unless it is global unicast, 2000::/3 (RFC 4291).
_IPV6 = tuple(
    (IPv6Network(network), reason)
    for network, reason in (
        ("::/128", Reason.ADDRESS_UNSPECIFIED),
        ("::1/128", Reason.ADDRESS_LOOPBACK),
        ("fc00::/7", Reason.ADDRESS_PRIVATE),
        ("fe80::/10", Reason.ADDRESS_LINK_LOCAL),
        ("fec0::/10", Reason.ADDRESS_SITE_LOCAL),
        ("ff00::/8", Reason.ADDRESS_MULTICAST),
        ("2001:2::/48", Reason.ADDRESS_BENCHMARKING),
        ("2001:db8::/32", Reason.ADDRESS_DOCUMENTATION),
        ("3fff::/20", Reason.ADDRESS_DOCUMENTATION),
        ("2001::/23", Reason.ADDRESS_RESERVED),
        ("2002::/16", Reason.ADDRESS_RESERVED),
    )
)
_GLOBAL_UNICAST = IPv6Network("2000::/3")

# The last 32 bits are an IPv4 address: mapped and compatible (RFC 4291), translated (RFC 2765), NAT64 (RFC 6052, 8215).
_LOW_32_BITS = tuple(
    IPv6Network(network) for network in ("::ffff:0:0/96", "::ffff:0:0:0/96", "::/96", "64:ff9b::/96", "64:ff9b:1::/96")
)
_SIX_TO_FOUR = IPv6Network("2002::/16")
_TEREDO = IPv6Network("2001::/32")
_ISATAP = frozenset({0x00005EFE, 0x02005EFE})


def unmapped(address: Address) -> tuple[Address, ...]:
    """The addresses that packets sent to `address` end up at: the IPv4 ones inside it, else itself.

    Teredo (RFC 4380) holds two, its server's and its client's; ISATAP (RFC 5214) one behind any global prefix.
    """
    if isinstance(address, IPv4Address):
        return (address,)
    plain = IPv6Address(int(address))  # without a zone id, which would keep networks from matching
    return _embedded(plain) or (plain,)


def _embedded(address: IPv6Address) -> tuple[Address, ...]:
    bits = int(address)
    if bits <= 1:  # :: and ::1 lie in ::/96 but hold no IPv4 address
        return ()
    low = IPv4Address(bits & 0xFFFFFFFF)
    if any(address in network for network in _LOW_32_BITS):
        return (low,)
    if address in _SIX_TO_FOUR:
        return (IPv4Address(bits >> 80 & 0xFFFFFFFF),)
    if address in _TEREDO:
        return (IPv4Address(bits >> 64 & 0xFFFFFFFF), IPv4Address(~bits & 0xFFFFFFFF))
    return (address, low) if bits >> 32 & 0xFFFFFFFF in _ISATAP else ()


@lru_cache(maxsize=1024)
def refusal(address: Address) -> Reason | None:
    """Why an unmapped address is not on the public internet; None if it is."""
    if address in _METADATA:
        return Reason.ADDRESS_METADATA
    if isinstance(address, IPv4Address):
        return next((reason for network, reason in _IPV4 if address in network), None)
    for network, reason in _IPV6:
        if address in network:
            return reason
    return None if address in _GLOBAL_UNICAST else Reason.ADDRESS_RESERVED


class AddressPolicy:
    """The public internet plus `allow_networks`, which are matched after unmapping."""

    def __init__(self, allow_networks: Iterable[Network] = ()) -> None:
        self._allowed = tuple(_plain(network) for network in allow_networks)
        self._known = lru_cache(maxsize=1024)(lambda address: next(self._refusals(address), None))

    def check(self, address: Address) -> Reason | None:
        """Why `address` may not be dialled; None if it may. Every address inside it has to pass."""
        return self._known(address)

    def _refusals(self, address: Address) -> Iterator[Reason]:
        for plain in unmapped(address):
            reason = refusal(plain)
            if reason is not None and not any(plain in network for network in self._allowed):
                yield reason


def _plain(network: Network) -> Network:
    """An IPv4 network written in its mapped form (::ffff:10.0.0.0/104) as what it means."""
    if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped and network.prefixlen >= 96:  # noqa: PLR2004 - the mapped prefix's length
        return IPv4Network((network.network_address.ipv4_mapped, network.prefixlen - 96))
    return network
