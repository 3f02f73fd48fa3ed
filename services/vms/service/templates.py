"""Templates that administrators add, of catalog images or of what a cluster has, and what images tell of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

import structlog

from libs.common.auth import Principal
from libs.common.etag import check_if_match
from libs.common.events import Event
from libs.common.ids import uuid7
from libs.common.operations import Operation, enqueue
from libs.common.quotas import ResourceRef
from libs.common.uow import UnitOfWork, UnitOfWorkFactory
from services.vms.domain import templates as rules
from services.vms.domain.cluster import Template
from services.vms.domain.templates import TemplateStatus
from services.vms.errors import ImageUnfit, NoCluster, TemplateInUse, TemplateNotFound, TemplateState, TemplateUnknown
from services.vms.events import ImageTold, TemplateCreated, TemplateEvent
from services.vms.models import TemplateRecord
from services.vms.ports import CatalogImage, Cluster, Images
from services.vms.repository import TemplateRepository
from services.vms.schemas import CreateTemplate
from services.vms.service.catalog import Catalog, as_recorded
from services.vms.service.fleet import Fleet

TEMPLATE = "template"
_ALIVE = (TemplateStatus.CREATING, TemplateStatus.READY)

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class TemplateDefaults:
    """What a template made of an image has, and of which images one is made unasked (`none`, `public` or `all`)."""

    cores: int = 2
    memory_mib: int = 2048
    policy: str = "none"


@dataclass(frozen=True, slots=True)
class Listed:
    """A template as it is offered: its copies on one cluster, its record, or both."""

    cluster: str
    copies: Sequence[Template]
    record: TemplateRecord | None


class Templates:
    """Use cases of templates; only administrators come here to change anything."""

    def __init__(
        self, uow: UnitOfWorkFactory, fleet: Fleet, catalog: Catalog, images: Images, defaults: TemplateDefaults
    ) -> None:
        self._uow = uow
        self._fleet = fleet
        self._catalog = catalog
        self._images = images
        self._defaults = defaults

    async def list(self, *, everything: bool) -> list[Listed]:
        """What machines can be made of; `everything` adds what is not ready, not offered, or gone from its cluster."""
        found = await self._catalog.templates()
        records = await self._catalog.records()
        if _more_than(found, records):  # another replica made one after this one had looked
            found = await self._catalog.templates(max_age_s=0.0)
        grouped: dict[tuple[str, str], Listed] = {}
        for cluster in self._fleet:
            known = sorted((one for name, one in found if name == cluster.name), key=lambda one: one.vmid)
            for one, record in as_recorded(cluster.name, known, records, hidden=everything):
                key = (cluster.name, str(record.id) if record else f"{one.name} {one.os_type}")
                earlier = grouped.get(key)
                grouped[key] = Listed(cluster.name, [*(earlier.copies if earlier else ()), one], record)
        if everything:
            for record in records:
                grouped.setdefault((record.cluster, str(record.id)), Listed(record.cluster, [], record))
        return list(grouped.values())

    async def create(self, admin: Principal, wish: CreateTemplate) -> tuple[TemplateRecord, Operation]:
        """Begin to make a template of an image, or to register one that a cluster has.

        Raises ImageUnknown, ImageUnfit, TemplateNotFound, NoCluster, TemplateState if there is one, or ImagesAway.
        """
        cluster = self._cluster(wish.cluster)
        if wish.image_id is not None:
            image = await self._images.get(wish.image_id)
            record = self._of_image(image, cluster, admin.user_id, wish)
        else:
            record = await self._of_cluster(cluster, admin.user_id, wish)
        async with self._uow() as uow:
            await self._require_new(uow, record)
            operation = await self._begin(uow, record)
            await uow.commit()
        return record, operation

    async def delete(self, template_id: UUID, *, if_match: str | None) -> tuple[TemplateRecord, Operation]:
        """Begin to remove a template with its copies; one that was only registered stays on its cluster.

        Raises TemplateUnknown, TemplateInUse, TemplateState or PreconditionFailed.
        """
        async with self._uow() as uow:
            templates = TemplateRepository(uow.session)
            record = await templates.get(template_id, for_update=True)
            if record is None:
                raise TemplateUnknown("There is no template of this id")
            check_if_match(if_match, record.version)
            rules.require_deletable_template(record.state)
            machines = await templates.machines_of(template_id)
            if machines:
                raise TemplateInUse(f"{machines} machines were made of it and must be deleted first")
            was = {"was": record.state}
            record.state = TemplateStatus.DELETING
            touch_template(uow, record)
            operation = await _enqueue(uow, "template.delete", record, was)
            await uow.commit()
        return record, operation

    # What images tells

    async def on_image(self, uow: UnitOfWork, event: Event) -> None:
        """Offer the templates of an image to whom it is offered, while it is active; make one if the policy says so."""
        image_id, told = UUID(event.subject), ImageTold.model_validate(event.data)
        templates = TemplateRepository(uow.session)
        await templates.lock_image(image_id)
        if not await templates.news(image_id, event.sequence):
            return
        verb = event.type.split(".")[2]
        records = await templates.of_image(image_id, for_update=True)
        for record in records:
            self._follow(uow, record, verb, told)
        wanted = self._defaults.policy in ("all", told.visibility)
        alive = any(record.state in _ALIVE for record in records)
        if verb == "activated" and wanted and not alive and event.owner is not None:
            await self._make_unasked(uow, image_id, told, event.owner)

    def _follow(self, uow: UnitOfWork, record: TemplateRecord, verb: str, told: ImageTold) -> None:
        record.private = told.visibility != "public"
        offered = record.offered if verb == "updated" else verb == "activated"
        why = None if offered else f"Its image was {verb}" + (f": {told.reason}" if told.reason else "")
        if record.offered == offered:
            return
        record.offered = offered
        if record.state == TemplateStatus.READY:
            record.reason = why
        touch_template(uow, record)
        _log.warning("template_offered" if offered else "template_withdrawn", template_id=str(record.id), reason=why)

    async def _make_unasked(self, uow: UnitOfWork, image_id: UUID, told: ImageTold, owner_id: str) -> None:
        image = CatalogImage(
            id=image_id,
            owner_id=owner_id,
            name=told.name,
            os_type=told.os_type,
            version=told.version,
            format=told.format,
            status=told.status,
            visibility=told.visibility,
            sha256=told.sha256,
            virtual_size_bytes=told.virtual_size_bytes,
        )
        try:
            record = self._of_image(image, self._cluster(None), owner_id, CreateTemplate(image_id=image_id))
        except (ImageUnfit, NoCluster) as error:
            _log.info("no_template_unasked", image_id=str(image_id), reason=error.detail)
            return
        await self._begin(uow, record)

    # Parts

    def _cluster(self, name: str | None) -> Cluster:
        self._fleet.require_any()
        found = next((one for one in self._fleet if name in (None, one.name)), None)
        if found is None:
            raise TemplateNotFound(
                f"There is no cluster {name}; there are: {', '.join(one.name for one in self._fleet)}"
            )
        return found

    def _of_image(self, image: CatalogImage, cluster: Cluster, owner_id: str, wish: CreateTemplate) -> TemplateRecord:
        extension = rules.require_fit(status=image.status, image_format=image.format, sha256=image.sha256)
        template_id = uuid7()
        os_type = wish.os_type or rules.os_word(image.os_type, image.version)
        return TemplateRecord(
            id=template_id,
            owner_id=owner_id,
            name=wish.name or rules.template_name(os_type, str(template_id)),
            os_type=os_type,
            cluster=cluster.name,
            state=TemplateStatus.CREATING,
            image_id=image.id,
            private=image.visibility != "public",
            format=extension,
            sha256=image.sha256,
            cores=wish.cores or self._defaults.cores,
            memory_mib=wish.memory_mib or self._defaults.memory_mib,
            disk_gib=rules.disk_gib(image.virtual_size_bytes),
            copies=[],
        )

    async def _of_cluster(self, cluster: Cluster, owner_id: str, wish: CreateTemplate) -> TemplateRecord:
        found = next((one for one in await cluster.templates(max_age_s=0) if one.vmid == wish.vmid), None)
        if found is None:
            raise TemplateNotFound(f"The cluster {cluster.name} shows no template {wish.vmid}")
        return TemplateRecord(
            id=uuid7(),
            owner_id=owner_id,
            name=wish.name or found.name,
            os_type=wish.os_type or found.os_type,
            cluster=cluster.name,
            state=TemplateStatus.CREATING,
            cores=found.cores,
            memory_mib=found.memory_mib,
            disk_gib=found.disk_gib,
            copies=[{"vmid": found.vmid, "node": found.node}],
        )

    async def _require_new(self, uow: UnitOfWork, record: TemplateRecord) -> None:
        templates = TemplateRepository(uow.session)
        if record.image_id is not None:
            await templates.lock_image(record.image_id)
        await templates.lock_cluster(record.cluster)
        vmids = {copy["vmid"] for copy in record.copies}
        for other in await templates.all():
            if other.cluster != record.cluster:
                continue
            of_image = record.image_id is not None and other.image_id == record.image_id and other.state in _ALIVE
            if of_image or vmids & {copy["vmid"] for copy in other.copies}:
                raise TemplateState(f"There is a template of it already: {other.id} is {other.state}")
            if other.name == record.name:
                raise TemplateState(f"There is a template of the name {record.name} already: {other.id}")

    async def _begin(self, uow: UnitOfWork, record: TemplateRecord) -> Operation:
        record.created_at = record.updated_at = uow.clock.now()
        await TemplateRepository(uow.session).add(record)
        tell_template(uow, TemplateCreated, record)
        return await _enqueue(uow, "template.create", record, {})


def _more_than(found: Sequence[tuple[str, Template]], records: Sequence[TemplateRecord]) -> bool:
    """Whether records know of copies that were not seen on the clusters."""
    seen = {(cluster, one.vmid) for cluster, one in found}
    ready = (record for record in records if record.state == TemplateStatus.READY)
    return any((record.cluster, copy["vmid"]) not in seen for record in ready for copy in record.copies)


def touch_template(uow: UnitOfWork, record: TemplateRecord) -> None:
    """Count a change of the record."""
    record.version += 1
    record.updated_at = uow.clock.now()


def tell_template(uow: UnitOfWork, event: type[TemplateEvent], record: TemplateRecord) -> None:
    """Tell of a template as it is now."""
    told = event(
        resource=ResourceRef(type=TEMPLATE, id=str(record.id), name=record.name),
        name=record.name,
        state=record.state,
        os_type=record.os_type,
        cluster=record.cluster,
        vmids=[copy["vmid"] for copy in record.copies],
        offered=record.offered,
        image_id=record.image_id,
        reason=record.reason,
    )
    uow.add_event(told, subject=str(record.id), owner=record.owner_id, sequence=record.version)


async def _enqueue(uow: UnitOfWork, kind: str, record: TemplateRecord, given: Mapping[str, str]) -> Operation:
    return await enqueue(
        uow, kind=kind, resource_type=TEMPLATE, resource_id=str(record.id), owner_id=record.owner_id, input=given
    )
