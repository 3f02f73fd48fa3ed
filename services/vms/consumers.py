"""Which events the vms service handles, and how."""

from collections.abc import Mapping

from libs.common.inbox import EventHandler
from libs.common.quotas import USER_EVENTS, on_user_event
from services.vms.service import Templates

IMAGE_EVENTS = tuple(f"images.image.{verb}.v1" for verb in ("updated", "activated", "deactivated", "deleted"))


def handlers(templates: Templates) -> Mapping[str, EventHandler]:
    return {**dict.fromkeys(USER_EVENTS, on_user_event), **dict.fromkeys(IMAGE_EVENTS, templates.on_image)}
