"""Seals deploy tokens of private repositories with a key derived from the deployment's secret."""

import base64

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import SecretStr

from services.containers.errors import GitRefused


class FernetSealer:
    """Fernet (AES-128-CBC with HMAC-SHA256) under a key derived with HKDF (RFC 5869)."""

    def __init__(self, secret: SecretStr) -> None:
        derivation = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"telar/containers/git-token")
        self._fernet = Fernet(base64.urlsafe_b64encode(derivation.derive(secret.get_secret_value().encode())))

    def seal(self, plain: str) -> str:
        return self._fernet.encrypt(plain.encode()).decode()

    def open(self, sealed: str) -> str:
        """Raises GitRefused if it was sealed with another secret."""
        try:
            return self._fernet.decrypt(sealed.encode()).decode()
        except InvalidToken as error:
            raise GitRefused("The deploy token cannot be read any more; send git_token again") from error
