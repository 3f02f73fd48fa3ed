"""The use cases of auth, by what they are about."""

from services.auth.service.api_keys import ApiKeys
from services.auth.service.audit import Actor, Audit
from services.auth.service.sessions import Sessions
from services.auth.service.usage import keep_ownership
from services.auth.service.users import Users

__all__ = ["Actor", "ApiKeys", "Audit", "Sessions", "Users", "keep_ownership"]
