"""Seals a guest's first password with a key derived from the deployment's secret, until the cluster has it."""

import base64

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import SecretStr


class FernetSealer:
    """Fernet (AES-128-CBC with HMAC-SHA256) under a key derived with HKDF (RFC 5869)."""

    def __init__(self, secret: SecretStr) -> None:
        derivation = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"telar/vms/guest-password")
        key = derivation.derive(secret.get_secret_value().encode())
        self._fernet = Fernet(base64.urlsafe_b64encode(key))

    def seal(self, plain: str) -> str:
        return self._fernet.encrypt(plain.encode()).decode()

    def open(self, sealed: str) -> str:
        try:
            return self._fernet.decrypt(sealed.encode()).decode()
        except InvalidToken as error:
            raise ValueError("sealed with another secret") from error
