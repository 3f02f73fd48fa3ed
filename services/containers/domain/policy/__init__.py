"""The policy gate: which compose files may run, by an allow-list of keys and a rule for each value."""

from services.containers.domain.policy.document import read_document
from services.containers.domain.policy.gate import Grants, require_allowed, require_known_keys, violations
from services.containers.domain.policy.values import Violation

__all__ = ["Grants", "Violation", "read_document", "require_allowed", "require_known_keys", "violations"]
