"""What changed between releases of Proxmox VE, as far as a client can tell."""

from dataclasses import dataclass

Number = tuple[int, ...]
"""A release, or the first one that has something: `(8, 1)`. The empty tuple stands for all releases."""

_FRAMES_9 = {
    "hour": (60, 60), "day": (60, 1440), "week": (1800, 336), "month": (1800, 1440), "year": (21600, 1440),
    "decade": (604800, 520),
}  # fmt: skip
_FRAMES_8 = {"hour": (60, 70), "day": (1800, 70), "week": (10800, 70), "month": (43200, 70), "year": (604800, 70)}


@dataclass(frozen=True, order=True, slots=True)
class Release:
    """One release; every difference that the lab plays is a property here or a `since` on a parameter or endpoint."""

    number: Number

    @classmethod
    def parse(cls, version: str) -> "Release":
        """Read `9.1.4`; raises ValueError."""
        return cls(tuple(int(part) for part in version.split(".")))

    def has(self, since: Number) -> bool:
        return self.number >= since

    @property
    def shown(self) -> str:
        """The `release` field of the version call."""
        return ".".join(str(part) for part in self.number[:2])

    @property
    def words_errors_in_json(self) -> bool:
        return self.has((8, 4))

    @property
    def surprise_status(self) -> int:
        """The status of failures outside of API methods."""
        return 500 if self.has((8, 4)) else 501

    @property
    def body_limit_bytes(self) -> int:
        return (512 if self.has((8, 4)) else 64) * 1024

    @property
    def lists_repeated_keys(self) -> bool:
        """Whether a repeated form key becomes a list; before, its values came joined by NUL."""
        return self.has((8,))

    @property
    def resizes_in_a_task(self) -> bool:
        return self.has((8,))

    @property
    def memory_is_text(self) -> bool:
        return self.has((8, 1))

    @property
    def mac_prefix(self) -> str | None:
        """The prefix of automatic MAC addresses; None means random, locally administered ones."""
        return "BC:24:11" if self.has((8, 1)) else None

    @property
    def guards_bridges(self) -> bool:
        """Whether using a bridge needs SDN.Use."""
        return self.has((8,))

    @property
    def splits_agent_privileges(self) -> bool:
        return self.has((9,))

    @property
    def uploads_import_images(self) -> bool:
        return self.has((8, 4))

    @property
    def has_ha_rules(self) -> bool:
        return self.has((9,))

    @property
    def binds_console_tickets(self) -> bool:
        """Whether a console ticket carries its own password and holds for its port only."""
        return self.has((9, 2))

    @property
    def opens_terminals_to_tokens(self) -> bool:
        return self.has((9, 1))

    @property
    def shows_pressure(self) -> bool:
        return self.has((9,))

    @property
    def history_frames(self) -> dict[str, tuple[int, int]]:
        """Seconds per point and number of points of each time frame."""
        return _FRAMES_9 if self.has((9,)) else _FRAMES_8

    @property
    def digest_mismatch(self) -> str:
        return f"checksum {'mismatch' if self.has((8,)) else 'missmatch'} (file change by other user?)"
