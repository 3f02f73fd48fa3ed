"""The failures of a service behind the gateway, with slugs that name it."""

from dataclasses import dataclass
from functools import cache
from typing import cast

from libs.common.errors import TelarError, Unavailable, UpstreamFailed, UpstreamTimeout


@dataclass(frozen=True, slots=True)
class Failures:
    """One service's own error classes: `vms-unavailable` (503), `vms-timeout` (504), `vms-failed` (502)."""

    unavailable: type[Unavailable]
    timeout: type[UpstreamTimeout]
    failed: type[UpstreamFailed]


@cache
def failures_of(service: str) -> Failures:
    """The error classes of a service; the same ones for every call, so that each slug has one class."""
    return Failures(
        unavailable=cast(
            "type[Unavailable]",
            _named(Unavailable, f"{service}-unavailable", f"The {service} service is not available"),
        ),
        timeout=cast(
            "type[UpstreamTimeout]",
            _named(UpstreamTimeout, f"{service}-timeout", f"The {service} service did not answer in time"),
        ),
        failed=cast(
            "type[UpstreamFailed]", _named(UpstreamFailed, f"{service}-failed", f"The {service} service failed")
        ),
    )


def _named(base: type[TelarError], slug: str, title: str) -> type[TelarError]:
    name = "".join(part.title() for part in slug.split("-"))
    return type(name, (base,), {"slug": slug, "title": title, "__module__": __name__, "__doc__": base.__doc__})
