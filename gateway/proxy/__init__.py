"""The streaming relay: one authorised request to one service, and its answer back, in constant memory."""

from gateway.proxy.client import ReplicaTransport
from gateway.proxy.forwarded import TrustedProxies
from gateway.proxy.relay import Relay
from gateway.proxy.target import checked_target
from gateway.proxy.upstream import CONNECT_TIMEOUT_S, Upstream

__all__ = ["CONNECT_TIMEOUT_S", "Relay", "ReplicaTransport", "TrustedProxies", "Upstream", "checked_target"]
