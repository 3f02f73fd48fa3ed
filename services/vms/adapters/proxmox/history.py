"""What machines used over time, from a cluster's round-robin databases."""

import math
from datetime import UTC, datetime

from services.vms.adapters.proxmox import parsing
from services.vms.adapters.proxmox.calls import machine_path, read
from services.vms.adapters.proxmox.session import Session
from services.vms.domain.history import SERIES, History, Timeframe


class Histories:
    """Implements `ports.Histories`."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def of(self, node: str, vmid: int, timeframe: Timeframe) -> History:
        path = f"{machine_path(node, vmid)}/rrddata"
        return await read(self._session, path, _history, node=node, timeframe=timeframe.value, cf="AVERAGE")


def _history(answer: object) -> History:
    """Samples by time. What was not measured is left out by Proxmox VE, or is null or NaN in some releases."""
    samples = sorted(
        (item for item in parsing.entries(answer) if parsing.whole(item.get("time"))),
        key=lambda item: parsing.whole(item.get("time")),
    )
    return History(
        times=[datetime.fromtimestamp(parsing.whole(item["time"]), UTC) for item in samples],
        series={name: [_value(item.get(key)) for item in samples] for name, key in SERIES.items()},
    )


def _value(value: object) -> float | None:
    if value is None or isinstance(value, bool):
        return None
    try:
        found = float(str(value))
    except ValueError:
        return None
    return found if math.isfinite(found) else None
