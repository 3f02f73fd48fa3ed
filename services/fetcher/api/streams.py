"""A job's progress as server-sent events."""

import asyncio
from collections.abc import AsyncIterator, Callable

from libs.common.auth import Principal
from libs.common.errors import TelarError
from services.fetcher.api.answers import job_detail
from services.fetcher.domain.jobs import ENDED
from services.fetcher.service import JobService

_EVERY_S = 1.0
_HEARTBEAT_TURNS = 15


async def job_events(
    service: JobService, principal: Principal, job_id: str, still_allowed: Callable[[Principal], bool]
) -> AsyncIterator[str]:
    """Lines of the stream; it ends with the job, with the job's deletion, and within a second of a revocation."""
    last = ""
    quiet = 0
    while still_allowed(principal):
        try:
            job = await service.get(principal, job_id)
            detail = job_detail(job, await service.progress(job), [])
        except TelarError:
            return
        text = detail.model_dump_json(exclude={"domains"})
        quiet += 1
        if text != last:
            last, quiet = text, 0
            yield f"event: job\nid: {job.version}\ndata: {text}\n\n"
        elif quiet % _HEARTBEAT_TURNS == 0:
            yield ": alive\n\n"
        if job.state in ENDED:
            yield f'event: end\ndata: {{"status": "{job.state.value}"}}\n\n'
            return
        await asyncio.sleep(_EVERY_S)
