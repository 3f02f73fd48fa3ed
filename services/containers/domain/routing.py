"""Where a stack is reached behind a reverse proxy: its host name under the operator's domain, and the labels."""

import re

_MAX_SLUG = 40
_ROUTER = "traefik.http.routers"
_SERVICE = "traefik.http.services"


def host_name(name: str, number: int, domain: str) -> str:
    """A stack's own host name: readable by its name, unique by its number (RFC 1123)."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower())[:_MAX_SLUG].strip("-")
    return f"{slug or 'stack'}-{number}.{domain}"


def route_labels(project: str, host: str, port: int) -> dict[str, str]:
    """What tells Traefik (Docker provider) to send a host's requests to a container's port.

    No network is named: on the engine's host network Traefik reaches each that a container has, whatever its name.
    """
    return {
        "traefik.enable": "true",
        f"{_ROUTER}.{project}.rule": f"Host(`{host}`)",
        f"{_SERVICE}.{project}.loadbalancer.server.port": str(port),
    }


def is_route_label(name: str) -> bool:
    return name.startswith("traefik.")
