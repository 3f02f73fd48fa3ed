"""What a stack holds of its owner's quota and of the host's ports while revisions come and go."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from libs.common import quotas
from libs.common.quotas import Usage
from libs.common.uow import UnitOfWork
from services.containers.domain.stacks import StackService
from services.containers.models import Stack
from services.containers.repository import PortRepository
from services.containers.service.records import services_of
from services.containers.settings import ContainersSettings


class Reservations:
    """Works in the caller's unit of work."""

    def __init__(self, settings: ContainersSettings) -> None:
        self._first = settings.port_range_first
        self._last = settings.port_range_last

    async def hold(self, uow: UnitOfWork, stack: Stack, amounts: Mapping[str, int]) -> Usage | None:
        """Hold at least the amounts: until a revision is settled, what runs and what is to run both fit.

        Raises QuotaExceeded.
        """
        return await self.settle(uow, stack, {name: max(n, stack.reserved.get(name, 0)) for name, n in amounts.items()})

    async def settle(self, uow: UnitOfWork, stack: Stack, amounts: Mapping[str, int]) -> Usage | None:
        """Hold the amounts and no more; None if that changes nothing."""
        names = {*amounts, *stack.reserved}
        changes = {name: amounts.get(name, 0) - stack.reserved.get(name, 0) for name in sorted(names)}
        changes = {name: change for name, change in changes.items() if change}
        if not changes:
            return None
        stack.reserved = {name: amount for name, amount in amounts.items() if amount}
        less = {name: -change for name, change in changes.items() if change < 0}
        more = {name: change for name, change in changes.items() if change > 0}
        usage = await quotas.release(uow.session, stack.owner_id, less) if less else None
        return await quotas.reserve(uow.session, stack.owner_id, more) if more else usage

    async def ports(self, uow: UnitOfWork, stack: Stack, services: Sequence[StackService]) -> list[StackService]:
        """Give each service its host port: the one it has, the one it asks for, or a free one.

        Raises NoPortLeft or HostPortTaken.
        """
        has = {(one.name, one.port): one.host_port for one in services_of(stack) if one.host_port is not None}
        ports = PortRepository(uow.session, self._first, self._last)
        own = set(has.values())
        asked = [one.host_port for one in services if one.host_port is not None and one.host_port not in own]
        await ports.take(stack.id, asked)
        placed = [
            replace(one, host_port=one.host_port or has.get((one.name, one.port))) if one.port is not None else one
            for one in services
        ]
        open_ones = [one for one in placed if one.port is not None and one.host_port is None]
        given = iter(await ports.reserve(stack.id, len(open_ones)) if open_ones else [])
        return [replace(one, host_port=next(given)) if one in open_ones else one for one in placed]

    async def release_ports_but(self, uow: UnitOfWork, stack: Stack, services: Sequence[StackService]) -> None:
        """Give back every host port that none of these services opens."""
        kept = [one.host_port for one in services if one.host_port is not None]
        await PortRepository(uow.session, self._first, self._last).release_but(stack.id, kept)
