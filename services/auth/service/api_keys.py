"""Use cases of API keys: make, list, delete."""

from collections.abc import Sequence
from ipaddress import ip_network
from uuid import UUID

from libs.common.auth import Principal
from libs.common.errors import FieldError, Invalid
from libs.common.ids import uuid7
from libs.common.pagination import PageRequest
from libs.common.uow import UnitOfWork, UnitOfWorkFactory
from services.auth import events
from services.auth.domain import check_not_wider, is_mistyped_key, key_digest, new_api_key
from services.auth.errors import ApiKeyNotFound, BadApiKey, UserNotFound
from services.auth.models import ApiKey
from services.auth.repository import AuthRepository
from services.auth.schemas import ApiKeyIn
from services.auth.service.audit import SYSTEM, Actor, record

_SEEDED_NAME = "seeded from settings"


class ApiKeys:
    """Keys of one user each; a key's text is known to its owner alone."""

    def __init__(self, uow: UnitOfWorkFactory) -> None:
        self._uow = uow

    async def create(self, wanted: ApiKeyIn, caller: Principal, address: str) -> tuple[ApiKey, str]:
        """Make a key that may do no more than its maker; gives its row and its text."""
        async with self._uow() as uow:
            repository = AuthRepository(uow.session)
            now = uow.clock.now()
            if wanted.expires_at is not None and wanted.expires_at <= now:
                raise Invalid(
                    "The key would have ended already", errors=[FieldError("/body/expires_at", "in the past")]
                )
            if await repository.user(UUID(caller.user_id), lock=True) is None:
                raise UserNotFound("Your account has been deleted")
            scopes = _without_admin(wanted.scopes, caller)
            parent = await _parent(repository, caller)
            check_not_wider(
                scopes=scopes,
                held=caller.scopes,
                expires_at=wanted.expires_at,
                parent_expires_at=parent.expires_at if parent else None,
                cidrs=[ip_network(cidr) for cidr in wanted.cidrs],
                parent_cidrs=[ip_network(cidr) for cidr in parent.cidrs] if parent else (),
            )
            fresh = new_api_key()
            key = ApiKey(
                id=uuid7(),
                user_id=UUID(caller.user_id),
                name=wanted.name,
                prefix=fresh.prefix,
                digest=fresh.digest,
                scopes=scopes,
                cidrs=wanted.cidrs,
                created_at=now,
                expires_at=wanted.expires_at,
            )
            repository.add(key)
            await record(uow, Actor.of(caller, address), "api_key.created", str(key.id), name=key.name, scopes=scopes)
            await uow.commit()
        return key, fresh.text

    async def list(self, caller: Principal, request: PageRequest) -> Sequence[ApiKey]:
        async with self._uow() as uow:
            return await AuthRepository(uow.session).api_keys(UUID(caller.user_id), request)

    async def delete(self, key_id: UUID, caller: Principal, address: str) -> None:
        """Delete one's own key, or as administrator anybody's; it is refused everywhere within a second."""
        async with self._uow() as uow:
            repository = AuthRepository(uow.session)
            key = await repository.api_key(key_id, lock=True)
            if key is None or not caller.may_see(str(key.user_id)):
                raise ApiKeyNotFound(f"There is no API key {key_id}")
            await _revoke(uow, key)
            await repository.delete_api_key(key)
            await record(uow, Actor.of(caller, address), "api_key.deleted", str(key.id), name=key.name)
            await uow.commit()

    async def seed(self, user_id: UUID, text: str) -> None:
        """Store a key that the operator gave in settings, once, and end the one that was given before.

        Raises ValueError for one that would never work.
        """
        if is_mistyped_key(text):
            raise ValueError("TELAR_AUTH_API_KEY looks like a key of ours but its checksum is wrong; copy it again")
        async with self._uow() as uow:
            repository = AuthRepository(uow.session)
            await repository.alone_at_first_start()
            if await repository.api_key_by_digest(key_digest(text)) is not None:
                return
            before = await repository.api_keys_named(user_id, _SEEDED_NAME)
            for old in before:
                await _revoke(uow, old)
                await repository.delete_api_key(old)
            key = ApiKey(
                id=uuid7(),
                user_id=user_id,
                name=_SEEDED_NAME,
                prefix=text[:4],
                digest=key_digest(text),
                scopes=["fetch", "images", "vms", "stacks", "account:read"],
                cidrs=[],
                created_at=uow.clock.now(),
            )
            repository.add(key)
            for old in before:
                await record(uow, SYSTEM, "api_key.deleted", str(old.id), name=old.name)
            await record(uow, SYSTEM, "api_key.seeded", str(key.id))
            await uow.commit()


def _without_admin(scopes: list[str], caller: Principal) -> list[str]:
    """`*` is all that the maker may: for whoever holds less than everything it becomes what they hold."""
    return sorted(caller.scopes) if "*" in scopes and "*" not in caller.scopes else scopes


async def _parent(repository: AuthRepository, caller: Principal) -> ApiKey | None:
    """The key the caller authenticated with, if it was one; raises BadApiKey if it was deleted since."""
    kind, _, key_id = caller.session_id.partition(":")
    if kind != "key":
        return None
    key = await repository.api_key(UUID(key_id), lock=True)
    if key is None:
        raise BadApiKey("The key you use has been deleted")
    return key


async def _revoke(uow: UnitOfWork, key: ApiKey) -> None:
    now = uow.clock.now()
    await AuthRepository(uow.session).revoke("session", f"key:{key.id}", now)
    revoke = events.Revoke(scope="session", id=f"key:{key.id}", revoked_at=now.timestamp())
    uow.add_event(events.ApiKeyRevoked(revokes=(revoke,)), subject=str(key.id), owner=str(key.user_id))
