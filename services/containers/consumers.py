"""Which events the service listens to: auth's, for the copy of users' limits."""

from libs.common.inbox import EventHandler
from libs.common.quotas import USER_EVENTS, on_user_event


def handlers() -> dict[str, EventHandler]:
    return dict.fromkeys(USER_EVENTS, on_user_event)
