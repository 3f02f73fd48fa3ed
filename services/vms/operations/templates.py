"""Making a template of an image: plan, download, import, convert, tidy up; and removing one with its copies."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import structlog

from libs.common.operations import Json, Operation, RetryFrom, Saga, Step, StepContext
from libs.common.operations import State as OperationState
from libs.common.uow import UnitOfWork
from services.vms.domain import templates as rules
from services.vms.domain.storages import CopyPlan, plan_copies
from services.vms.domain.templates import TemplateStatus
from services.vms.errors import (
    MachineMissing,
    NodeDown,
    PermissionMissing,
    ProxmoxRefused,
    ProxmoxUnavailable,
    TaskInterrupted,
    TemplateNotFound,
    TemplateUnknown,
    VmidTaken,
)
from services.vms.events import TemplateDeleted, TemplateFailed, TemplateReady
from services.vms.models import TemplateRecord
from services.vms.operations.machines import Machines, unless_gone
from services.vms.operations.template_copies import Copies, Copy, copies_of, first_there
from services.vms.ports import Cluster, Images
from services.vms.repository import LEFTOVER, TemplateRepository, VmidRepository
from services.vms.service import Vmids
from services.vms.service.templates import tell_template, touch_template

_TRIES = 30
_HEADROOM_GIB = 2
_DOWNLOAD_S = 6 * 3600.0
_SHOWN_S = 60.0
_LOOK_AGAIN_S = 0.5

_log = structlog.get_logger()


class TemplateSagas:
    """The steps of `template.create` and `template.delete`."""

    def __init__(self, machines: Machines, vmids: Vmids, images: Images, *, link_lifetime_s: int) -> None:
        self._machines = machines
        self._vmids = vmids
        self._copies = Copies(machines, vmids)
        self._images = images
        self._link_lifetime_s = link_lifetime_s

    def sagas(self) -> tuple[Saga, Saga]:
        long: dict[str, Any] = {"timeout_s": _DOWNLOAD_S, "max_attempts": _TRIES, "interruptible": False}
        brief: dict[str, Any] = {"max_attempts": _TRIES, "interruptible": False}
        return (
            Saga(
                "template.create",
                (
                    Step("plan", self.plan, self.unplan, **brief),
                    Step("download", self.download, unless_gone(self.undo_download), weight=5, **long),
                    Step("import", self.create, unless_gone(self.undo_create), weight=3, **long),
                    Step("convert", self.convert, **long),
                    Step("tidy", self.tidy, **brief),
                    Step("confirm", self.confirm, **brief),
                ),
                cancellable=True,
                on_end=self.made,
            ),
            Saga("template.delete", (Step("destroy", self.destroy, **long),), on_end=self.removed),
        )

    # Making

    async def plan(self, context: StepContext) -> Json:
        """Decide where the copies go, and lease their VMIDs; a registered template only has to be there."""
        record = await self._copies.record(context)
        cluster = self._machines.fleet.get(record.cluster)
        if record.image_id is None:
            there = {one.vmid for one in await cluster.templates(max_age_s=0)}
            if not {copy["vmid"] for copy in record.copies} <= there:
                raise TemplateNotFound("The cluster shows this template no more")
            return {}
        known = await cluster.inventory(max_age_s=0)
        if not known.nodes:
            raise ProxmoxUnavailable("The cluster shows no nodes at all; that proves nothing", retry_after_s=5)
        avoided: Mapping[str, str] = context.memo.get("avoided", {})
        need_gib = record.disk_gib + _HEADROOM_GIB
        plans = plan_copies(known, cluster.storages, need_gib=need_gib, avoided=avoided)
        async with self._machines.uow() as uow:
            kept = await TemplateRepository(uow.session).get(record.id, for_update=True)
            if kept is None:
                raise TemplateUnknown("The template's record is gone")
            if not kept.copies:  # else they were leased before a crash
                kept.copies = [
                    {
                        "vmid": await self._vmids.lease_for(uow, record.cluster, record.id),
                        "node": plan.node,
                        "storage": plan.storage,
                        "import_storage": plan.import_storage,
                    }
                    for plan in plans
                ]
            await uow.commit()
        return {"copies": len(plans)}

    async def unplan(self, context: StepContext) -> None:
        """Give the VMIDs back that nothing has."""
        async with self._machines.uow() as uow:
            record = await TemplateRepository(uow.session).get(UUID(context.operation.resource_id), for_update=True)
            if record is None or record.image_id is None:
                return
            for copy in record.copies:
                await VmidRepository(uow.session).release_held(record.cluster, copy["vmid"])
            record.copies = []
            await uow.commit()

    async def download(self, context: StepContext) -> Json:
        record = await self._copies.record(context)
        cluster = self._machines.fleet.get(record.cluster)
        name = rules.file_name(str(record.id), record.format or "")
        done: set[tuple[str, str]] = set()
        for copy in copies_of(record):
            if copy.plan is None or not first_there(copy.plan, done):
                continue
            await self._guarded(context, copy.node, self._download(context, cluster, record, copy.plan, name))
        return {}

    async def _download(
        self, context: StepContext, cluster: Cluster, record: TemplateRecord, plan: CopyPlan, name: str
    ) -> None:
        async def begin() -> str:
            if record.image_id is None or record.sha256 is None:
                raise TemplateUnknown("The template is not made of an image")
            url = await self._images.link(record.image_id, expires_s=self._link_lifetime_s)
            storage, sha256 = plan.import_storage, record.sha256
            return await cluster.files.download(plan.node, storage, url=url, name=name, sha256=sha256)

        async def recall(_since: float) -> str | None:
            return None  # downloading once more is harmless: a file with the right digest is kept

        await self._machines.task(context, cluster, f"download {plan.node}", begin, recall)

    async def undo_download(self, context: StepContext) -> None:
        await self._copies.remove_files(context)

    async def create(self, context: StepContext) -> Json:
        """Make a machine of the file on each node, under its VMID and mark, so that it can be known again."""
        record = await self._copies.record(context)
        cluster = self._machines.fleet.get(record.cluster)
        for copy in copies_of(record):
            if copy.plan is None:
                continue
            try:
                await self._guarded(context, copy.node, self._create(context, cluster, record, copy))
            except VmidTaken:
                if await self._copies.found(copy) is None:
                    await self._copies.another_vmid(context, record, copy)
        return {}

    async def _create(self, context: StepContext, cluster: Cluster, record: TemplateRecord, copy: Copy) -> None:
        key = f"create {copy.node}"
        if copy.plan is None or (not context.checkpoint.get(key) and await self._copies.found(copy) is not None):
            return
        options = rules.machine_options(
            copy.plan,
            template_id=str(record.id),
            name=record.name,
            os_type=record.os_type,
            extension=record.format or "",
            cores=record.cores,
            memory_mib=record.memory_mib,
        )

        async def begin() -> str:
            return await cluster.create(copy.node, copy.vmid, options)

        async def recall(since: float) -> str | None:
            return await self._machines.look_up(cluster, copy.node, copy.vmid, "qmcreate", since)

        await self._machines.task(context, cluster, key, begin, recall)

    async def undo_create(self, context: StepContext) -> None:
        """Remove what was made; what cannot be removed now keeps its VMID for the sweep."""
        record = await self._copies.record(context)
        cluster = self._machines.fleet.get(record.cluster)
        for copy in copies_of(record):
            key = f"create {copy.node}"
            if copy.plan is None or (key not in context.checkpoint and not context.result):
                continue
            stored = context.checkpoint.get(key) or {}
            try:
                if stored.get("upid"):
                    await self._machines.break_off(context, cluster, stored["upid"])
                await self._copies.remove(context, copy, unclear="intended_at" in stored)
            except (NodeDown, TaskInterrupted) as error:
                await self._copies.give_up(copy, LEFTOVER, error.detail)

    async def convert(self, context: StepContext) -> Json:
        record = await self._copies.record(context)
        for copy in copies_of(record):
            if copy.plan is not None:
                await self._guarded(context, copy.node, self._convert(context, copy))
        return {}

    async def _convert(self, context: StepContext, copy: Copy) -> None:
        found = await self._machines.find(copy)

        async def begin() -> str:
            return await found.cluster.convert(found.node, found.vmid)

        recall = self._machines.recall(found, "qmtemplate")
        try:
            await self._machines.task(context, found.cluster, f"convert {copy.node}", begin, recall)
        except ProxmoxRefused as error:
            if "convert a template to a template" not in error.reason:
                raise

    async def tidy(self, context: StepContext) -> Json:
        await self._copies.remove_files(context)
        return {}

    async def confirm(self, context: StepContext) -> Json:
        """Wait until the cluster's list shows the copies as templates, which may take it some seconds."""
        record = await self._copies.record(context)
        cluster = self._machines.fleet.get(record.cluster)
        deadline = time.time() + _SHOWN_S
        wanted = {copy.vmid for copy in copies_of(record)}
        while True:
            machines = (await cluster.inventory(max_age_s=0)).machines
            if wanted <= {vmid for vmid, machine in machines.items() if machine.template}:
                return {}
            if time.time() > deadline:
                raise ProxmoxUnavailable("The cluster does not show the template yet", retry_after_s=5)
            await context.progress(0.5)
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def made(self, uow: UnitOfWork, operation: Operation) -> None:
        record = await TemplateRepository(uow.session).get(UUID(operation.resource_id), for_update=True)
        if record is None:
            return
        touch_template(uow, record)
        if operation.state is OperationState.SUCCEEDED:
            record.state = TemplateStatus.READY
            record.reason = None if record.offered else "Its image is not active"
            tell_template(uow, TemplateReady, record)
            return
        record.state = TemplateStatus.FAILED
        record.reason = str((operation.error or {}).get("detail", operation.message))
        if operation.state is OperationState.NEEDS_OPERATOR:
            return  # it keeps what it may still use, its image too
        if operation.state is OperationState.CANCELLED:
            await TemplateRepository(uow.session).remove(record)
            tell_template(uow, TemplateDeleted, record)
            return
        record.copies = []
        tell_template(uow, TemplateFailed, record)

    # Removing

    async def destroy(self, context: StepContext) -> Json:
        record = await self._copies.record(context)
        if record.image_id is not None:
            for copy in copies_of(record):
                await self._copies.remove(context, copy)
        return {}

    async def removed(self, uow: UnitOfWork, operation: Operation) -> None:
        templates = TemplateRepository(uow.session)
        record = await templates.get(UUID(operation.resource_id), for_update=True)
        if record is None:
            return
        touch_template(uow, record)
        if operation.state is not OperationState.SUCCEEDED:
            left = TemplateStatus.READY if record.copies else TemplateStatus.FAILED
            record.state = TemplateStatus(operation.input.get("was", left))
            record.reason = str((operation.error or {}).get("detail", operation.message))
            return
        if record.image_id is not None:
            for copy in record.copies:
                await VmidRepository(uow.session).release_held(record.cluster, copy["vmid"])
        await templates.remove(record)
        tell_template(uow, TemplateDeleted, record)

    # Parts

    async def _guarded(self, context: StepContext, node: str, work: Any) -> None:
        """Do a node's part; a node that fails is left out when everything is planned anew."""
        try:
            await work
        except (VmidTaken, PermissionMissing):
            raise
        except (NodeDown, TaskInterrupted, ProxmoxRefused, MachineMissing) as error:
            context.memo.setdefault("avoided", {})[node] = error.detail
            raise RetryFrom("plan", reason=f"{node} failed: {error.detail}") from error
