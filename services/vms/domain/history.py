"""What a machine used over time, in series whose names say their units; pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Timeframe(StrEnum):
    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    YEAR = "year"


SERIES: Mapping[str, str] = {
    "cpu_ratio": "cpu",
    "cpu_cores": "maxcpu",
    "memory_used_bytes": "mem",
    "memory_total_bytes": "maxmem",
    "disk_total_bytes": "maxdisk",
    "disk_read_bytes_per_s": "diskread",
    "disk_written_bytes_per_s": "diskwrite",
    "network_received_bytes_per_s": "netin",
    "network_sent_bytes_per_s": "netout",
}
"""Telar's names, and Proxmox VE's. `cpu_ratio` is the share of the machine's cores, from 0 to 1."""


@dataclass(frozen=True, slots=True)
class History:
    """Points in time, and for each series one value a point; None where nothing was measured."""

    times: Sequence[datetime]
    series: Mapping[str, Sequence[float | None]]
