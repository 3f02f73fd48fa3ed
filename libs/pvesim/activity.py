"""How busy things look: numbers that follow from a name and the time, so that nothing has to run to make them."""

import hashlib
from typing import Any

PRESSURES = tuple(f"pressure{what}{how}" for what in ("cpu", "io", "memory") for how in ("some", "full"))


def load(seed: str, at: int, low: float, high: float) -> float:
    """A number between two bounds, the same for the same thing and minute."""
    digest = hashlib.blake2b(f"{seed}/{at // 60}".encode(), digest_size=4).digest()
    return low + (high - low) * int.from_bytes(digest, "big") / 0xFFFFFFFF


def pressure(seed: str, at: int) -> dict[str, Any]:
    """Stall shares in percent, as release 9 tells them."""
    return {name: round(load(f"{seed}{name}", at, 0, 2), 2) for name in PRESSURES}
