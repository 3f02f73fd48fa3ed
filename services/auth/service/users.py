"""Use cases of users: create, find, change, delete, quotas."""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import SecretStr
from sqlalchemy.exc import IntegrityError

from libs.common.auth import Principal, Role
from libs.common.etag import check_if_match
from libs.common.events import Event
from libs.common.ids import uuid7
from libs.common.pagination import PageRequest
from libs.common.uow import UnitOfWork, UnitOfWorkFactory
from services.auth import events
from services.auth.domain import Quota, check_new_password, name_key
from services.auth.errors import (
    BadCredentials,
    LastAdministrator,
    RegistrationClosed,
    UserExists,
    UserNotFound,
    UserOwnsResources,
)
from services.auth.models import User
from services.auth.ports import Passwords
from services.auth.repository import AuthRepository
from services.auth.schemas import MePatch, UserIn, UserPatch
from services.auth.service.audit import SYSTEM, Actor, record
from services.auth.service.throttle import Throttle
from services.auth.settings import AuthSettings

_SERVICE_ACCOUNT = "service-account"
_STATES = 500
_NAMES = frozenset({"username", "email"})


class Users:
    """Everything that changes a user goes through here, with its audit entry and its event in one transaction."""

    def __init__(self, uow: UnitOfWorkFactory, passwords: Passwords, settings: AuthSettings) -> None:
        self._uow = uow
        self._passwords = passwords
        self._settings = settings
        self._throttle = Throttle(uow, settings)

    async def create(self, wanted: UserIn, caller: Principal | None, address: str) -> User:
        """Create a user: administrators any, others themselves as CLIENT where registration is open."""
        is_admin = caller is not None and caller.is_admin
        if not is_admin and (not self._settings.open_registration or wanted.role != Role.CLIENT):
            raise RegistrationClosed("Ask an administrator for an account")
        password = wanted.password.get_secret_value()
        check_new_password(password)
        digest = await self._passwords.hash(password)
        actor = Actor.of(caller, address) if caller else Actor(None, wanted.username, address)
        async with self._uow() as uow:
            user = self._new(uow, wanted.username, wanted.email, Role(wanted.role), digest)
            await self._insert(uow, user, actor)
            await uow.commit()
        return user

    async def create_external(self, external_id: str, username: str, caller: Principal, address: str) -> User:
        """Create the account an older client names by its own `userid`; it has no password until one is set."""
        async with self._uow() as uow:
            email = f"{name_key(external_id)}@users.telar.invalid"
            user = self._new(uow, username, email, Role.CLIENT, None)
            user.external_id = external_id
            await self._insert(uow, user, Actor.of(caller, address))
            await uow.commit()
        return user

    async def ensure_administrator(self) -> SecretStr | None:
        """On an empty database make the first administrator; gives the password if one had to be made up."""
        async with self._uow() as uow:
            if await self._has_administrator(AuthRepository(uow.session)):
                return None
        given = self._settings.admin_password
        password = given or SecretStr(secrets.token_urlsafe(15))
        digest = await self._passwords.hash(password.get_secret_value())
        async with self._uow() as uow:
            repository = AuthRepository(uow.session)
            await repository.alone_at_first_start()
            if await self._has_administrator(repository):
                return None  # another replica's first start was quicker
            user = self._new(uow, self._settings.admin_username, self._settings.admin_email, Role.ADMIN, digest)
            user.is_superuser = True
            await self._insert(uow, user, SYSTEM)
            await uow.commit()
        return None if given else password

    async def _has_administrator(self, repository: AuthRepository) -> bool:
        name = self._settings.admin_username
        return bool(await repository.administrators() or await repository.user_by_name(name))

    async def ensure_service_account(self) -> User:
        """The account of a key that the operator gave in settings; it has no password."""
        async with self._uow() as uow:
            repository = AuthRepository(uow.session)
            await repository.alone_at_first_start()
            user = await repository.user_by_name(_SERVICE_ACCOUNT)
            if user is None:
                email = f"{_SERVICE_ACCOUNT}@users.telar.invalid"
                user = self._new(uow, _SERVICE_ACCOUNT, email, Role.CLIENT, None)
                await self._insert(uow, user, SYSTEM)
                await uow.commit()
        return user

    async def get(self, user_id: UUID) -> User:
        async with self._uow() as uow:
            return await _existing(AuthRepository(uow.session), user_id)

    async def exists(self, userid: str) -> bool:
        """Whether older clients' `userid` is anybody: an external id, a name, or an id."""
        async with self._uow() as uow:
            return await AuthRepository(uow.session).is_anybody(userid)

    async def states(self, after: UUID | None) -> list[Event]:
        """Some users in the order of their ids, from behind that one: each as the event that tells of all of it."""
        async with self._uow() as uow:
            found = await AuthRepository(uow.session).users_after(after, limit=_STATES)
            return [
                uow.event(
                    events.UserUpdated(**_state(user)), subject=str(user.id), owner=str(user.id), sequence=user.version
                )
                for user in found
            ]

    async def by_external_id(self, external_id: str) -> User:
        async with self._uow() as uow:
            user = await AuthRepository(uow.session).user_by_external_id(external_id)
        if user is None:
            raise UserNotFound(f"There is no user with the userid {external_id!r}")
        return user

    async def list(self, request: PageRequest, *, search: str | None, role: str | None) -> Sequence[User]:
        async with self._uow() as uow:
            return await AuthRepository(uow.session).users(request, search=search, role=role)

    async def change(self, user_id: UUID, patch: UserPatch, if_match: str | None, actor: Actor) -> User:
        """Change a user as an administrator; changes of role, lock and password end its tokens at once."""
        changes = patch.model_dump(exclude_none=True, exclude={"password"})
        if patch.password is not None:
            check_new_password(patch.password.get_secret_value())
            changes["password_hash"] = await self._passwords.hash(patch.password.get_secret_value())
        async with self._uow() as uow:
            repository = AuthRepository(uow.session)
            administrators = await repository.administrators() if patch.touches_access else 0
            user = await _existing(repository, user_id, lock=True)
            check_if_match(if_match, user.version)
            if "quota" in changes:
                changes["quota"] = Quota(**{**user.quota, **changes["quota"]}).model_dump()
            loses_admin = (
                user.role == Role.ADMIN
                and not user.disabled
                and (changes.get("role", user.role) != Role.ADMIN or changes.get("disabled", False))
            )
            if loses_admin and administrators == 1:
                raise LastAdministrator("Make another administrator first")
            changed = await self._apply(uow, user, changes)
            if changed:
                await self._announce(uow, user, changed)
                named = sorted(name.removesuffix("_hash") for name in changed)
                await record(uow, actor, "user.updated", str(user.id), changed=named)
            await uow.commit()
        return user

    async def give_password(self, name: str, password: SecretStr) -> None:
        """As an administrator would, for an operator who has none left; raises UserNotFound."""
        async with self._uow() as uow:
            user = await AuthRepository(uow.session).user_by_name(name)
        if user is None:
            raise UserNotFound(f"There is no user with the name or address {name!r}")
        await self.change(user.id, UserPatch(password=password), None, SYSTEM)

    async def change_me(self, caller: Principal, patch: MePatch, if_match: str | None, address: str) -> User:
        full = UserPatch(**patch.model_dump())
        return await self.change(UUID(caller.user_id), full, if_match, Actor.of(caller, address))

    async def change_password(self, caller: Principal, current: SecretStr, new: SecretStr, address: str) -> None:
        """Change one's own password; every session and access token ends, keys go on."""
        check_new_password(new.get_secret_value())
        while True:
            checked = await self.get(UUID(caller.user_id))
            await self._throttle.require_free(checked.username, address)
            right, _ = await self._passwords.verify(current.get_secret_value(), checked.password_hash)
            if not right:
                await self._throttle.failed(checked.username, address)
                raise BadCredentials("The current password is wrong")
            digest = await self._passwords.hash(new.get_secret_value())
            async with self._uow() as uow:
                user = await _existing(AuthRepository(uow.session), checked.id, lock=True)
                if user.password_hash != checked.password_hash:
                    continue  # it was changed meanwhile
                user.password_hash = digest
                await self._announce(uow, user, {"password_hash"})
                await record(uow, Actor.of(caller, address), "user.password_changed", str(user.id))
                await uow.commit()
                return

    async def delete(self, user_id: UUID, if_match: str | None, actor: Actor) -> None:
        """Delete a user who owns nothing; raises UserOwnsResources with the list otherwise."""
        async with self._uow() as uow:
            repository = AuthRepository(uow.session)
            administrators = await repository.administrators()
            user = await _existing(repository, user_id, lock=True)
            check_if_match(if_match, user.version)
            owned = await repository.owned(str(user_id), limit=20)
            if owned:
                names = ", ".join(f"{one.type} {one.name} ({one.id})" for one in owned)
                raise UserOwnsResources(f"Delete or hand over first: {names}")
            if user.role == Role.ADMIN and not user.disabled and administrators == 1:
                raise LastAdministrator("Make another administrator first")
            now = _touch(uow, user)
            uow.add_event(
                events.UserDeleted(**_state(user), revokes=await _end_tokens(uow, user, now)),
                subject=str(user.id),
                owner=str(user.id),
                sequence=user.version,
            )
            await repository.delete_user(user)
            await record(uow, actor, "user.deleted", str(user.id), username=user.username)
            await uow.commit()

    async def usage(self, user_id: UUID) -> tuple[User, dict[str, int], Sequence[Any]]:
        """The user, what it uses of each quota in all services, and what it owns."""
        async with self._uow() as uow:
            repository = AuthRepository(uow.session)
            user = await _existing(repository, user_id)
            used = dict.fromkeys(Quota.model_fields, 0)
            for row in await repository.usage(str(user_id)):
                for resource, amount in row.used.items():
                    used[resource] = used.get(resource, 0) + amount
            return user, used, await repository.owned(str(user_id))

    def _new(self, uow: UnitOfWork, username: str, email: str, role: Role, digest: str | None) -> User:
        now = uow.clock.now()
        quota = self._settings.admin_quota if role is Role.ADMIN else self._settings.client_quota
        return User(
            id=uuid7(),
            email=email,
            email_key=name_key(email),
            username=username,
            username_key=name_key(username),
            password_hash=digest,
            role=role,
            quota=Quota.model_validate(quota).model_dump(),
            created_at=now,
            updated_at=now,
        )

    async def _insert(self, uow: UnitOfWork, user: User, actor: Actor) -> None:
        repository = AuthRepository(uow.session)
        await _refuse_taken(repository, (user.username, user.email), user.id)
        repository.add(user)
        await _flush_unique(repository)
        uow.add_event(
            events.UserCreated(**_state(user)), subject=str(user.id), owner=str(user.id), sequence=user.version
        )
        await record(uow, actor, "user.created", str(user.id), username=user.username, role=user.role)

    async def _apply(self, uow: UnitOfWork, user: User, changes: Mapping[str, Any]) -> set[str]:
        changed = {name for name, value in changes.items() if getattr(user, name) != value}
        await _refuse_taken(AuthRepository(uow.session), [changes[name] for name in changed & _NAMES], user.id)
        for name in changed:
            setattr(user, name, changes[name])
        user.email_key, user.username_key = name_key(user.email), name_key(user.username)
        if changed:
            await _flush_unique(AuthRepository(uow.session))
        return changed

    async def _announce(self, uow: UnitOfWork, user: User, changed: set[str]) -> None:
        """Say what changed, and end the user's tokens if what they may do changed."""
        now = _touch(uow, user)
        revokes: tuple[events.Revoke, ...] = ()
        if changed & {"role", "disabled", "password_hash"}:
            revokes = await _end_tokens(uow, user, now)
        kind: type[events.UserState] = events.UserUpdated
        if "disabled" in changed and user.disabled:
            kind = events.UserDisabled
        elif changed == {"quota"}:
            kind = events.QuotaChanged
        state = kind(**_state(user), revokes=revokes)
        uow.add_event(state, subject=str(user.id), owner=str(user.id), sequence=user.version)


async def _existing(repository: AuthRepository, user_id: UUID, *, lock: bool = False) -> User:
    user = await repository.user(user_id, lock=lock)
    if user is None:
        raise UserNotFound(f"There is no user {user_id}")
    return user


async def _refuse_taken(repository: AuthRepository, names: Iterable[str], user_id: UUID) -> None:
    """Raise UserExists if another user logs in by one of the names: a username must not be somebody's e-mail either."""
    wanted = list(names)
    if wanted:
        await repository.alone_among_names()
    for name in wanted:
        other = await repository.user_by_name(name)
        if other is not None and other.id != user_id:
            raise UserExists(f"{name!r} is taken; choose another")


async def _flush_unique(repository: AuthRepository) -> None:
    try:
        await repository.flush()
    except IntegrityError as error:
        raise UserExists("The username, e-mail or userid is taken; choose another") from error


def _touch(uow: UnitOfWork, user: User) -> datetime:
    now = uow.clock.now()
    user.version += 1
    user.updated_at = now
    return now


async def _end_tokens(uow: UnitOfWork, user: User, at: datetime) -> tuple[events.Revoke, ...]:
    """Refuse what the user was issued until now, and for good each session whose next token may be signed only now."""
    repository = AuthRepository(uow.session)
    ended = [("user", str(user.id))]
    ended += [("session", str(session_id)) for session_id in await repository.revoke_sessions(user.id, at)]
    for scope, subject_id in ended:
        await repository.revoke(scope, subject_id, at)
    return tuple(events.Revoke(scope=scope, id=subject_id, revoked_at=at.timestamp()) for scope, subject_id in ended)


def _state(user: User) -> dict[str, Any]:
    return {
        "username": user.username,
        "email": user.email,
        "external_id": user.external_id,
        "role": user.role,
        "disabled": user.disabled,
        "quota": user.quota,
    }
