"""Routes of templates: what machines can be made from, and how an administrator adds to it."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Response

from libs.common.auth import AdminOnly, Principal
from libs.common.auth.dependencies import current_principal
from libs.common.etag import IfMatch
from libs.common.openapi import problems
from libs.common.operations import Operation
from libs.common.operations_api import OperationView, accepted
from services.vms.api.views import template_out
from services.vms.models import TemplateRecord
from services.vms.schemas import CreateTemplate, TemplateList, TemplateOut
from services.vms.service import Listed, Templates

Reader = Annotated[Principal, Depends(current_principal)]


class BegunTemplate(OperationView):
    """An operation and the template it works on."""

    template: TemplateOut


_BEGUN: dict[int | str, dict[str, Any]] = {202: {"model": BegunTemplate, "description": "Begun; follow Location"}}


def add_templates(routes: APIRouter, templates: Templates) -> None:
    @routes.get("/templates", tags=["templates"], responses=problems(_503="No cluster answers"))
    async def list_templates(principal: Reader) -> TemplateList:
        """What machines can be made from; the operating system is a template's tag `os-…`, or its name.

        Administrators also see those that are being made, have failed, or are not offered for now.
        """
        found = await templates.list(everything=principal.is_admin)
        return TemplateList(items=[template_out(one) for one in found])

    @routes.post(
        "/templates",
        status_code=202,
        tags=["templates"],
        response_class=Response,
        responses=_BEGUN
        | problems(
            _409="There is one already, or no template can be made of the image",
            _422="A field is wrong, or there is no such image or template",
            _503="No cluster answers, or the images service does not",
        ),
    )
    async def create_template(admin: AdminOnly, wish: CreateTemplate) -> Response:
        """Make a template of a catalog image, or offer one that a cluster has."""
        return _begun(*await templates.create(admin, wish))

    @routes.delete(
        "/templates/{template_id}",
        status_code=202,
        tags=["templates"],
        response_class=Response,
        responses=_BEGUN
        | problems(
            _404="No such template",
            _409="Machines are made of it, or its state does not allow it",
            _412="The template has changed",
        ),
    )
    async def delete_template(_admin: AdminOnly, template_id: UUID, if_match: IfMatch = None) -> Response:
        """Remove a template with its copies; one that was only registered stays on its cluster."""
        return _begun(*await templates.delete(template_id, if_match=if_match))


def _begun(record: TemplateRecord, operation: Operation) -> Response:
    shown = template_out(Listed(record.cluster, [], record))
    shown.vmids = sorted(copy["vmid"] for copy in record.copies)
    return accepted(operation, template=shown.model_dump(mode="json"))
