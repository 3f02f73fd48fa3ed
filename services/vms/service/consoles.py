"""Consoles: a ticket for a user and a machine, the display it opens, and the moment at which that must end."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

import structlog
from sqlalchemy import select
from sqlmodel import col

from libs.common.auth import Principal, Revocations
from libs.common.logging import audit_log
from libs.common.quotas import accounts_table
from libs.common.uow import UnitOfWork, UnitOfWorkFactory
from services.vms.domain.states import State
from services.vms.errors import ConsolesTaken, ProxmoxUnavailable, TicketRefused, VmState
from services.vms.models import Vm
from services.vms.ports import Display
from services.vms.service import tickets
from services.vms.service.access import Reference
from services.vms.service.fleet import Fleet
from services.vms.service.locating import Found, locate
from services.vms.service.machines import Vms
from services.vms.service.relay import Traffic, Viewer, converse

SESSION_ENDED, MACHINE_GONE, NOT_THEIRS = "the session has ended", "the machine is gone", "the machine is another's"
LASTED = "it was open for as long as a console may be"

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Drawn:
    """A ticket as its user gets it, once."""

    vm: Vm
    text: str
    expires_at: datetime


@dataclass(eq=False, slots=True)
class Visit:
    """An open console: who looks at what, and when it began. `end` is set with the reason when it must end."""

    principal: Principal
    vm: Vm
    found: Found
    traffic: Traffic = field(default_factory=Traffic)
    begun_at: float = field(default_factory=time.monotonic)
    end: "asyncio.Future[str]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def must_end(self, reason: str) -> None:
        if not self.end.done():
            self.end.set_result(reason)


class Consoles:
    """Use cases of consoles. The process that relays one watches for its end."""

    def __init__(
        self,
        uow: UnitOfWorkFactory,
        fleet: Fleet,
        vms: Vms,
        revocations: Revocations,
        *,
        ticket_s: float,
        open_s: float,
        max_s: float,
        at_once: int,
    ) -> None:
        self._uow = uow
        self._fleet = fleet
        self._vms = vms
        self._revocations = revocations
        self._ticket = timedelta(seconds=ticket_s)
        self._open_s = open_s
        self._max = timedelta(seconds=max_s)
        self._at_once = at_once
        self._opening = 0
        self._open: set[Visit] = set()

    async def draw(self, principal: Principal, reference: Reference) -> Drawn:
        """Give a ticket for a machine that runs; raises VmNotFound or VmState."""
        vm = await self._vms.get(principal, reference)
        _require_display(State(vm.state))
        async with self._uow() as uow:
            now = uow.clock.now()
            await tickets.sweep(uow.session, now=now)
            expires_at = now + self._ticket
            text = tickets.draw(uow.session, principal, vm.id, expires_at=expires_at)
            await uow.commit()
        return Drawn(vm, text, expires_at)

    async def viewer_file(self, principal: Principal, reference: Reference) -> tuple[Vm, Mapping[str, str]]:
        """What a SPICE viewer needs for a machine that runs; raises VmNotFound, VmState or NoSpiceDisplay."""
        vm = await self._vms.get(principal, reference)
        _require_display(State(vm.state))
        found = await locate(self._fleet, vm)
        told = await found.cluster.displays.spice(found.node, found.vmid)
        audit_log("console_file_given", user_id=principal.user_id, vm_id=str(vm.id), vmid=vm.vmid, node=found.node)
        return vm, told

    async def redeem(self, ticket: str, vm_id: UUID, caller: Principal | None) -> tuple[Visit, Display]:
        """Use a ticket up and open its machine's display; the caller must `leave` the visit.

        `caller` is who sent credentials beside the ticket, if anybody did. Raises TicketRefused, VmNotFound, VmState,
        ConsolesTaken, or what the cluster says.
        """
        if len(self._open) + self._opening >= self._at_once:
            raise ConsolesTaken(f"This process keeps {self._at_once} open; close one", retry_after_s=10)
        self._opening += 1
        try:
            principal = await self._take(ticket, vm_id, caller)
            vm = await self._vms.get(principal, vm_id)
            try:
                async with asyncio.timeout(self._open_s):
                    found, display = await self._display(vm)
            except TimeoutError as error:
                raise ProxmoxUnavailable("The display did not open in time; try again", retry_after_s=5) from error
            visit = Visit(principal, vm, found)
            self._open.add(visit)
        finally:
            self._opening -= 1
        audit_log("console_opened", **_told(visit))
        return visit, display

    async def attend(self, visit: Visit, viewer: Viewer, display: Display) -> str:
        """Carry the console's bytes until it ends; gives why."""
        refused = asyncio.create_task(self._until_refused(visit))
        try:
            return await converse(viewer, display, asyncio.shield(visit.end), visit.traffic)
        finally:
            refused.cancel()

    async def leave(self, visit: Visit, display: Display, reason: str) -> None:
        """Close the display and note who looked at what for how long."""
        self._open.discard(visit)
        visit.must_end(reason)
        try:
            await display.close()
        finally:
            traffic = visit.traffic
            audit_log(
                "console_closed",
                **_told(visit),
                duration_s=round(time.monotonic() - visit.begun_at, 1),
                reason=reason,
                bytes_shown=traffic.to_viewer,
                bytes_typed=traffic.to_display,
            )

    async def watch(self) -> None:
        """End the consoles of machines that are gone, or that their viewers may see no more."""
        if not self._open:
            return
        ids = {visit.vm.id for visit in self._open}
        async with self._uow() as uow:
            rows = await uow.session.execute(
                select(col(Vm.id), col(Vm.owner_id), col(Vm.state)).where(col(Vm.id).in_(ids))
            )
            known = {vm_id: (owner_id, State(state)) for vm_id, owner_id, state in rows}
        for visit in list(self._open):
            owner_id, state = known.get(visit.vm.id, ("", State.DELETING))
            if state is State.DELETING:
                visit.must_end(MACHINE_GONE)
            elif not visit.principal.may_see(owner_id):
                visit.must_end(NOT_THEIRS)

    async def _display(self, vm: Vm) -> tuple[Found, Display]:
        found = await locate(self._fleet, vm)
        if (await found.cluster.power(found.node, found.vmid)).status == "stopped":
            raise VmState("It is stopped; a console needs a machine that runs")
        return found, await found.cluster.displays.vnc(found.node, found.vmid)

    async def _take(self, ticket: str, vm_id: UUID, caller: Principal | None) -> Principal:
        async with self._uow() as uow:
            now = uow.clock.now()
            try:
                principal = await tickets.take(uow.session, ticket, vm_id, now=now, lasts=self._max)
            finally:
                await uow.commit()  # whatever is wrong with it, it is used up
            if caller is not None and caller.user_id != principal.user_id:
                raise TicketRefused("The ticket is another user's")
            if self._revocations.refuses(principal) or await _disabled(uow, principal):
                raise TicketRefused("The session that asked for the ticket has ended; log in again")
        return principal

    async def _until_refused(self, visit: Visit) -> None:
        await self._revocations.wait_until_refused(visit.principal)
        visit.must_end(SESSION_ENDED if self._revocations.refuses(visit.principal) else LASTED)


def _require_display(state: State) -> None:
    if state not in (State.RUNNING, State.PAUSED):
        raise VmState(f"It is {state}; a console needs a machine that runs")


async def _disabled(uow: UnitOfWork, principal: Principal) -> bool:
    account = accounts_table.c
    query = select(account.disabled | account.deleted).where(account.owner_id == principal.user_id)
    return bool(await uow.session.scalar(query))


def _told(visit: Visit) -> dict[str, object]:
    return {
        "user_id": visit.principal.user_id,
        "username": visit.principal.username,
        "vm_id": str(visit.vm.id),
        "owner_id": visit.vm.owner_id,
        "vmid": visit.found.vmid,
        "node": visit.found.node,
    }
