"""Keeps a stored secret unreadable for whoever has the database alone."""

import base64

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import SecretStr


class Sealer:
    """Fernet (AES-128-CBC with HMAC-SHA256) under a key derived with HKDF (RFC 5869), one for each `purpose`."""

    def __init__(self, secret: SecretStr, purpose: str) -> None:
        derivation = HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose.encode())
        self._fernet = Fernet(base64.urlsafe_b64encode(derivation.derive(secret.get_secret_value().encode())))

    def seal(self, plain: str) -> str:
        return self._fernet.encrypt(plain.encode()).decode()

    def open(self, sealed: str) -> str:
        """Raises ValueError if it was sealed with another secret or for another purpose."""
        try:
            return self._fernet.decrypt(sealed.encode()).decode()
        except InvalidToken as error:
            raise ValueError("sealed with another secret") from error
