"""Events that the fetcher listens to: accounts and their quotas."""

from collections.abc import Mapping

from libs.common.quotas import USER_EVENTS
from services.fetcher.repository import MongoAccounts
from services.fetcher.repository.inbox import Handler


def handlers(accounts: MongoAccounts) -> Mapping[str, Handler]:
    return dict.fromkeys(USER_EVENTS, accounts.on_user_event)
