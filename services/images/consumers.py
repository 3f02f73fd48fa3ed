"""Which events the images service handles, and how."""

from collections.abc import Mapping

from libs.common.inbox import EventHandler
from libs.common.quotas import USER_EVENTS, on_user_event
from services.images.service.sharing import on_user_deleted
from services.images.service.uses import USE_EVENTS, keep_use


def handlers() -> Mapping[str, EventHandler]:
    return {
        **dict.fromkeys(USER_EVENTS, on_user_event),
        "auth.user.deleted.v1": on_user_deleted,
        **dict.fromkeys(USE_EVENTS, keep_use),
    }
