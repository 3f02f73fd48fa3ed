"""Identity on every hop: principals, token checks, revocations, route dependencies."""

from libs.common.auth.dependencies import (
    AdminOnly,
    AuthenticationMiddleware,
    CurrentUser,
    ServiceOnly,
    identity,
    requires_scope,
)
from libs.common.auth.principal import Principal, Role
from libs.common.auth.revocations import REVOKING_EVENTS, Revocations, apply_revocation, follow_revocations
from libs.common.auth.service_tokens import ServiceTokens
from libs.common.auth.tokens import JwksClient, KeySource, TokenVerifier, read_jwks

__all__ = [
    "REVOKING_EVENTS",
    "AdminOnly",
    "AuthenticationMiddleware",
    "CurrentUser",
    "JwksClient",
    "KeySource",
    "Principal",
    "Revocations",
    "Role",
    "ServiceOnly",
    "ServiceTokens",
    "TokenVerifier",
    "apply_revocation",
    "follow_revocations",
    "identity",
    "read_jwks",
    "requires_scope",
]
