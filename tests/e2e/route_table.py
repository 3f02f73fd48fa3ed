"""Who may call what: one row for every route of every service; a parameter in a path is written `{}`."""

import re
from enum import StrEnum


class Who(StrEnum):
    ANYONE = "anyone"
    USER = "user"
    ADMIN = "admin"
    SERVICE = "service"
    """Telar's own processes; not reachable through the gateway."""


_VERBS = ("start", "shutdown", "stop", "reboot", "pause", "resume", "suspend")

# (who, area of the scope a key needs, "METHOD path"): the area is empty where any key will do.
_TABLE: tuple[tuple[Who, str, tuple[str, ...]], ...] = (
    (
        Who.ANYONE,
        "",
        (
            *("GET /", "GET /heartbeat", "GET /livez", "GET /readyz", "GET /api/v1/health"),
            *("POST /api/v1/login", "POST /api/v1/token/refresh", "GET /.well-known/jwks.json"),
            "POST /api/v1/users/",  # as CLIENT, where registration is open
            "OPTIONS /api/v1/uploads",  # what the server knows of tus
        ),
    ),
    (
        Who.USER,
        "",
        (
            *("GET /protected", "POST /api/v1/logout", "GET /api/v1/events", "GET /api/v1/operations"),
            *("GET /api/v1/operations/{}", "DELETE /api/v1/operations/{}", "GET /api/v1/operations/{}/events"),
        ),
    ),
    (
        Who.ADMIN,
        "",
        (
            *("GET /logs/stream", "GET /api/v1/dead-letters", "POST /api/v1/dead-letters/{}/replay"),
            *("DELETE /api/v1/dead-letters/{}", "POST /api/v1/operations/{}/resume"),
        ),
    ),
    (
        Who.USER,
        "account",
        (
            *("GET /api/v1/users/me", "PATCH /api/v1/users/me", "POST /api/v1/users/me/password"),
            *("GET /api/v1/users/me/usage", "GET /api/v1/api-keys", "POST /api/v1/api-keys"),
            *("DELETE /api/v1/api-keys/{}", "GET /api/v1/sessions", "DELETE /api/v1/sessions/{}", "GET /users/{}"),
        ),
    ),
    (
        Who.ADMIN,
        "account",
        (
            *("GET /api/v1/users/", "GET /api/v1/users/{}", "PATCH /api/v1/users/{}", "DELETE /api/v1/users/{}"),
            *("GET /api/v1/audit", "GET /api/v1/audit/verify", "POST /users"),
        ),
    ),
    (
        Who.USER,
        "images",
        (
            *(
                "POST /api/v1/images/upload",
                "POST /api/v1/images/import",
                "GET /api/v1/images",
                "GET /api/v1/images/{}",
            ),
            *("PATCH /api/v1/images/{}", "DELETE /api/v1/images/{}", "GET /api/v1/images/{}/download"),
            *(
                "HEAD /api/v1/images/{}/download",
                "POST /api/v1/images/{}/link",
                "POST /api/v1/images/{}/deactivate",
                "POST /api/v1/images/{}/activate",
            ),
            *("GET /api/v1/images/{}/members", "PUT /api/v1/images/{}/members", "GET /api/v1/stats"),
            *("GET /api/v1/images/{}/provenance", "POST /api/v1/images/{}/verify", "POST /api/v1/images/{}/convert"),
            *("POST /api/v1/uploads", "HEAD /api/v1/uploads/{}"),
            *("PATCH /api/v1/uploads/{}", "DELETE /api/v1/uploads/{}"),
        ),
    ),
    (
        Who.USER,
        "vms",
        (
            *("POST /api/v1/vms", "GET /api/v1/vms", "GET /api/v1/vms/{}", "PATCH /api/v1/vms/{}"),
            *("DELETE /api/v1/vms/{}", *(f"POST /api/v1/vms/{{}}/{verb}" for verb in _VERBS)),
            *("POST /api/v1/vms/{}/console", "GET /api/v1/vms/{}/snapshots", "POST /api/v1/vms/{}/snapshots"),
            *("POST /api/v1/vms/{}/snapshots/{}/rollback", "DELETE /api/v1/vms/{}/snapshots/{}"),
            *("GET /api/v1/vms/{}/metrics", "GET /api/v1/templates", "POST /api/v1/placements"),
            *("POST /api/v1/virtual-machines/", "GET /api/v1/virtual-machines/", "GET /api/v1/virtual-machines/{}"),
            *("PUT /api/v1/virtual-machines/{}", "DELETE /api/v1/virtual-machines/{}"),
            *("GET /vm/{}", "POST /vm", "POST /vm/update/{}", "POST /vm/connect/{}"),
            *(f"POST /control-vm/{{}}/{verb}" for verb in ("start", "shutdown", "pause", "delete")),
            "POST /control-vm/{}/{}",
        ),
    ),
    (
        Who.ADMIN,
        "vms",
        (
            *("POST /api/v1/templates", "DELETE /api/v1/templates/{}", "GET /api/v1/nodes", "GET /api/v1/drift"),
            *("PATCH /api/v1/nodes/{}", "PUT /api/v1/nodes/{}", "POST /api/v1/drift/{}/resolve"),
            *("PUT /api/v1/nodes/{}/maintenance", "DELETE /api/v1/nodes/{}/maintenance"),
            "POST /api/v1/nodes/{}/maintenance",
        ),
    ),
    (
        Who.USER,
        "stacks",
        (
            *("GET /api/v1/stack-templates", "POST /api/v1/stacks", "GET /api/v1/stacks", "GET /api/v1/stacks/{}"),
            *(f"POST /api/v1/stacks/{{}}/{verb}" for verb in ("start", "stop", "restart", "redeploy", "rollback")),
            *("DELETE /api/v1/stacks/{}", "POST /api/v1/stacks/validate", "PATCH /api/v1/stacks/{}"),
            *(f"GET /api/v1/stacks/{{}}/{part}" for part in ("logs", "stats", "compose", "revisions", "files")),
            *(f"{verb} /api/v1/stacks/{{}}/files/{{}}" for verb in ("GET", "PUT", "POST", "DELETE")),
            *("GET /service-types", "GET /service/{}", "POST /service", "POST /control-service/{}/{}"),
            *(f"POST /control-service/{{}}/{verb}" for verb in ("start", "shutdown", "restart", "delete")),
        ),
    ),
    (
        Who.USER,
        "fetch",
        (
            *("POST /api/v1/download/collection/{}/{}", "POST /api/v1/download/document/{}/{}/{}"),
            *("POST /api/v1/download/batch", "GET /api/v1/jobs", "GET /api/v1/jobs/{}", "GET /api/v1/jobs/{}/items"),
            *(f"POST /api/v1/jobs/{{}}/{verb}" for verb in ("cancel", "pause", "resume", "retry-failed")),
            *("GET /api/v1/jobs/{}/events", "DELETE /api/v1/jobs/{}", "GET /api/v1/jobs/{}/files/{}"),
            *("GET /api/v1/jobs/{}/export", "GET /api/v1/jobs/{}/report", "GET /api/v1/metrics"),
        ),
    ),
    (
        Who.SERVICE,
        "",
        (
            *("POST /internal/login", "POST /internal/refresh", "POST /internal/logout"),
            *("POST /internal/api-keys/exchange", "GET /internal/revocations", "GET /internal/users"),
            "GET /internal/accounts",
        ),
    ),
)
MATRIX = {row: (who, area) for who, area, rows in _TABLE for row in rows}
HIDDEN = {
    *("GET /openapi.json", "HEAD /openapi.json", "GET /docs", "GET /redoc", "GET /metrics", "GET /problems/{}"),
    *("GET /api/v1/image-files/{}/{}", "HEAD /api/v1/image-files/{}/{}"),  # by a link that is good for minutes
    "WEBSOCKET /api/v1/vms/{}/console/ws",  # by a ticket of one use, bound to its user and machine
}
"""What services serve outside their documents, to anyone (metrics: to configured networks)."""
READ_BY_SERVICES = {
    *(
        "GET /api/v1/images",
        "GET /api/v1/images/{}",
        "GET /api/v1/images/{}/download",
        "HEAD /api/v1/images/{}/download",
        "POST /api/v1/images/{}/link",
    ),
    *("GET /api/v1/vms", "GET /api/v1/vms/{}", "GET /api/v1/templates"),
}
"""What one service reads of another, for a user who was checked there."""


def row_of(method: str, path: str) -> str:
    return f"{method.upper()} {re.sub(r'{[^}]*}', '{}', path)}"
