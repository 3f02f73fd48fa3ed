"""What the use cases of auth need from outside."""

from typing import Protocol


class Passwords(Protocol):
    """Hashes and checks passwords, few at a time."""

    async def hash(self, password: str) -> str:
        """Give an argon2id hash; raises HashingBusy when too many wait."""
        ...

    async def verify(self, password: str, stored: str | None) -> tuple[bool, str | None]:
        """Check a password against a stored hash (argon2id, or bcrypt of older installations).

        The second value is a new hash to store when the old one should be upgraded. Without a stored hash the same
        work is done and the answer is False, so that a missing user takes as long as a wrong password.
        """
        ...
