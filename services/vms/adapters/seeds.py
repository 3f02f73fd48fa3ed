"""NoCloud seeds as ISO images."""

import asyncio
from dataclasses import replace

import bcrypt

from services.vms.adapters.iso9660 import build
from services.vms.domain.seed import LABEL, Seed, require_hashable

_ROUNDS = 10


class NoCloudSeeds:
    """Implements `ports.Seeds`."""

    async def build(self, seed: Seed, *, password: str | None) -> bytes:
        return await asyncio.to_thread(_build, seed, password)


def _build(seed: Seed, password: str | None) -> bytes:
    if password is not None:
        require_hashable(password)
        # cloud-init knows hashes by their prefix: 2a, not 2b.
        hashed = bcrypt.hashpw(password.encode(), bcrypt.gensalt(_ROUNDS, prefix=b"2a"))
        seed = replace(seed, password_hash=hashed.decode())
    return build(LABEL, seed.files())
