"""The streaming relay: one authorised request to one service, and its answer back, in constant memory."""

from gateway.proxy.forwarded import TrustedProxies
from gateway.proxy.relay import Relay
from gateway.proxy.target import checked_target
from gateway.proxy.upstream import Upstream

__all__ = ["Relay", "TrustedProxies", "Upstream", "checked_target"]
