"""An issuer of real access tokens for tests: services check them exactly as they check the gateway's."""

import time
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from libs.common.auth import Revocations, TokenVerifier
from libs.common.auth.tokens import ALGORITHM, TOKEN_TYPE
from libs.common.ids import uuid7


class TestIssuer:
    """Signs tokens with a key of its own and is the key source that trusts them."""

    __test__ = False  # not a test class, whatever its name begins with

    def __init__(self, *, issuer: str = "telar", audience: str = "telar", kid: str = "test-key") -> None:
        self.kid = kid
        self.private_key = Ed25519PrivateKey.generate()
        self._issuer = issuer
        self._audience = audience

    async def key(self, kid: str) -> Ed25519PublicKey | None:
        return self.private_key.public_key() if kid == self.kid else None

    def verifier(self, revocations: Revocations | None = None) -> TokenVerifier:
        return TokenVerifier(self, revocations or Revocations(), issuer=self._issuer, audience=self._audience)

    def claims(self, user_id: str, *, role: str = "CLIENT", scopes: tuple[str, ...] = ("*",)) -> dict[str, Any]:
        now = time.time()
        return {
            "iss": self._issuer,
            "aud": self._audience,
            "sub": user_id,
            "sid": f"session-of-{user_id}",
            "jti": uuid7().hex,
            "role": role,
            "scopes": list(scopes),
            "username": f"name-of-{user_id}",
            "iat": now,
            "exp": now + 600,
        }

    def sign(self, claims: dict[str, Any], **headers: Any) -> str:
        return jwt.encode(
            claims, self.private_key, algorithm=ALGORITHM, headers={"kid": self.kid, "typ": TOKEN_TYPE, **headers}
        )

    def token(self, user_id: str, *, role: str = "CLIENT", scopes: tuple[str, ...] = ("*",)) -> str:
        return self.sign(self.claims(user_id, role=role, scopes=scopes))

    def headers(self, user_id: str, *, role: str = "CLIENT", scopes: tuple[str, ...] = ("*",)) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token(user_id, role=role, scopes=scopes)}"}
