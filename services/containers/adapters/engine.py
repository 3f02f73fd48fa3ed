"""Looks at the Docker engine through docker-py, in threads: health, images, leftovers, logs."""

import asyncio
import contextlib
import re
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import urlsplit

import docker
import requests
import structlog
from docker.errors import APIError, DockerException, ImageNotFound, NotFound

from services.containers.adapters.engine_logs import Pump, close_stream
from services.containers.domain.compose import STACK_LABEL
from services.containers.domain.revisions import ImageRecord
from services.containers.domain.stacks import Health, Observed, ServiceUsage
from services.containers.errors import EngineFailed, EngineUnavailable, TooManyLogStreams
from services.containers.ports import LogLine

_PROJECT_LABEL = "com.docker.compose.project"
_SERVICE_LABEL = "com.docker.compose.service"
_TIMEOUT_S = 30
_CONNECT_S = 2.0
_CONNECTIONS = 32
_QUEUED_LINES = 1000
_CHECK_TIMEOUT_S = 30.0
_CHECK_FIRST_S, _CHECK_MOST_S = 0.01, 0.5
_EXITED = re.compile(r"(?:Exited|Restarting) \((-?\d+)\)")
_HEALTH_WORDS = {"(healthy)": Health.HEALTHY, "(unhealthy)": Health.UNHEALTHY, "(health: starting)": Health.STARTING}
_LEFTOVER_PASSES = 3
_EVENTS = ("start", "die", "destroy", "health_status", "pause", "unpause", "oom")

T = TypeVar("T")
_log = structlog.get_logger()


class _Ended(Exception):
    """A container has just ended; `is_unknown` if this engine has none of that id."""

    def __init__(self, *, is_unknown: bool) -> None:
        super().__init__()
        self.is_unknown = is_unknown


class DockerEngine:
    """One engine; the client is made on first use, so that the service starts without an engine."""

    project_label = _PROJECT_LABEL
    is_spread = False
    """Whether containers may run on other engines than this one."""

    def __init__(self, docker_host: str, *, max_log_streams: int) -> None:
        self._host = docker_host
        self._client: docker.DockerClient | None = None
        self._making = threading.Lock()
        # Of its own: an engine that hangs, or measures for a second, keeps no thread from anything else.
        self._threads = ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="docker")
        self._streams_left = max_log_streams

    async def ping(self) -> None:
        await self._in_thread(lambda client: client.ping())

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._client is not None:
            await asyncio.to_thread(self._client.close)

    async def has_image(self, name: str) -> bool:
        return await self.image_id(name) is not None

    async def image_id(self, name: str) -> str | None:
        def look(client: docker.DockerClient) -> str | None:
            try:
                return str(client.images.get(name).id)
            except ImageNotFound:
                return None

        return await self._in_thread(look)

    async def images_of(self, project: str) -> dict[str, ImageRecord]:
        def look(client: docker.DockerClient) -> dict[str, ImageRecord]:
            rows = client.api.containers(all=True, filters={"label": f"{_PROJECT_LABEL}={project}"})
            return {row["Labels"].get(_SERVICE_LABEL, ""): _image_record(client, row) for row in rows}

        return await self._in_thread(look)

    async def observe(self, project: str | None = None) -> Sequence[Observed]:
        labels = [STACK_LABEL] if project is None else [f"{_PROJECT_LABEL}={project}"]
        rows = await self._in_thread(lambda client: client.api.containers(all=True, filters={"label": labels}))
        return [_observed(row) for row in rows if row["Labels"].get("com.docker.compose.oneoff") != "True"]

    async def check_health(self, container_id: str) -> bool | None:
        """Its owner wrote the check, which may never end: no thread waits for it."""
        try:
            begun = await self._in_thread(lambda client: _begun_check(client, container_id))
            if begun is None:
                return None
            run, timeout_s = begun
            until = asyncio.get_running_loop().time() + timeout_s
            pause_s = _CHECK_FIRST_S
            while (well := await self._in_thread(lambda client: _check_result(client, run))) is None:
                if asyncio.get_running_loop().time() > until:
                    return False
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 1.5, _CHECK_MOST_S)
        except _Ended as ended:
            return None if ended.is_unknown and self.is_spread else False  # another node may have it
        return well

    async def remove_project(self, project: str, *, keep_volumes: bool = False) -> None:
        await self._in_thread(lambda client: _remove_project(client, project, volumes=not keep_volumes))

    async def usage(self, project: str) -> Sequence[ServiceUsage]:
        running = [one for one in await self.observe(project) if one.state == "running"]

        def measure(container: Observed) -> Callable[[docker.DockerClient], ServiceUsage | None]:
            return lambda client: _usage(client, container)

        found = await asyncio.gather(*(self._in_thread(measure(container)) for container in running))
        return [usage for usage in found if usage is not None]

    async def changes(self) -> AsyncIterator[str]:
        wanted = {"type": ["container"], "label": [STACK_LABEL], "event": list(_EVENTS)}
        stream: Any = await self._in_thread(lambda client: client.api.events(decode=True, filters=wanted))
        projects: asyncio.Queue[str | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def read() -> None:
            with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody is left to tell
                with contextlib.suppress(requests.RequestException, OSError, ValueError, AttributeError):
                    for event in stream:
                        project = event.get("Actor", {}).get("Attributes", {}).get(self.project_label, "")
                        loop.call_soon_threadsafe(projects.put_nowait, project)
                loop.call_soon_threadsafe(projects.put_nowait, None)

        threading.Thread(target=read, daemon=True).start()
        try:
            while (project := await projects.get()) is not None:
                yield project
        finally:
            await asyncio.to_thread(close_stream, stream)
        raise EngineUnavailable

    async def require_logs(self, project: str, service: str | None = None) -> None:
        await self._logged(project, service)

    async def logs(
        self, project: str, *, tail: int, follow: bool, service: str | None = None
    ) -> AsyncIterator[LogLine]:
        containers = await self._logged(project, service)
        self._streams_left -= len(containers)
        try:
            async for line in self._merged(containers, tail, follow=follow):
                yield line
        finally:
            self._streams_left += len(containers)

    async def _logged(self, project: str, service: str | None) -> Sequence[Observed]:
        """The containers whose logs are to be read; raises TooManyLogStreams."""
        containers = [one for one in await self.observe(project) if service in (None, one.service)]
        if self._streams_left < len(containers):
            raise TooManyLogStreams("Try again when others have stopped reading", retry_after_s=10)
        return containers

    async def _merged(self, containers: Sequence[Observed], tail: int, *, follow: bool) -> AsyncIterator[LogLine]:
        """The lines of several containers in the order they come, each read by a thread of its own."""
        lines: asyncio.Queue[LogLine | None] = asyncio.Queue(_QUEUED_LINES)
        pump = Pump(asyncio.get_running_loop(), lines)
        streams: list[Any] = []
        try:
            for container in containers:
                stream = await self._in_thread(self._opening(container, tail, follow=follow))
                streams.append(stream)
            for container, stream in zip(containers, streams, strict=True):
                threading.Thread(target=pump.run, args=(container.service, stream), daemon=True).start()
            ended = 0
            while ended < len(streams):
                line = await lines.get()
                if line is None:
                    ended += 1
                else:
                    yield line
        finally:
            pump.closed = True
            for stream in streams:
                await asyncio.to_thread(close_stream, stream)
            while not lines.empty():  # a thread may be waiting for room
                lines.get_nowait()

    def _opening(self, container: Observed, tail: int, *, follow: bool) -> Callable[[docker.DockerClient], Any]:
        return lambda client: client.api.logs(
            container.container_id, stream=True, follow=follow, timestamps=True, tail=tail
        )

    async def _in_thread(self, call: Callable[[docker.DockerClient], T]) -> T:
        def run() -> T:
            try:
                return call(self._connected())
            except (requests.ConnectionError, requests.Timeout, OSError) as error:
                raise EngineUnavailable from error
            except APIError as error:
                raise EngineFailed(f"The engine answered with status {error.status_code}") from error
            except DockerException as error:
                raise EngineUnavailable from error

        return await asyncio.get_running_loop().run_in_executor(self._threads, run)

    def _connected(self) -> docker.DockerClient:
        with self._making:
            if self._client is None:
                self._probe()
                self._client = docker.DockerClient(base_url=self._host, timeout=_TIMEOUT_S, max_pool_size=_CONNECTIONS)
            return self._client

    def _probe(self) -> None:
        """Raise OSError if nobody listens; docker-py would leave its socket open then."""
        url = urlsplit(self._host)
        if url.scheme == "unix":
            with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
                probe.settimeout(_CONNECT_S)
                probe.connect(url.path)


def _observed(row: dict[str, Any]) -> Observed:
    """Read a row of the engine's container list; health and exit code stand only in its `Status` words."""
    words: str = row["Status"]
    exited = _EXITED.match(words)
    return Observed(
        project=row["Labels"].get(_PROJECT_LABEL, ""),
        service=row["Labels"].get(_SERVICE_LABEL, ""),
        container_id=row["Id"],
        image=row["Image"],
        state=row["State"],
        health=_health(row["State"], words),
        exit_code=int(exited[1]) if exited else None,
    )


def _begun_check(client: docker.DockerClient, container_id: str) -> tuple[str, float] | None:
    """Begin a container's own health check; gives its id and how long it may take, None if there is no check."""
    with _ending():
        check = client.api.inspect_container(container_id)["Config"].get("Healthcheck") or {}
        test = check.get("Test")
        if not test or test[0] == "NONE":
            return None
        command = ["/bin/sh", "-c", *test[1:]] if test[0] == "CMD-SHELL" else test[1:]
        run: str = client.api.exec_create(container_id, command)["Id"]
        with contextlib.suppress(APIError):  # a command that cannot be started: its result tells
            client.api.exec_start(run, detach=True)
        return run, min((check.get("Timeout") or 0) / 1e9 or _CHECK_TIMEOUT_S, _CHECK_TIMEOUT_S)


def _check_result(client: docker.DockerClient, run: str) -> bool | None:
    """Whether a check passed; None while it runs."""
    with _ending():
        told = client.api.exec_inspect(run)
    return None if told["Running"] else bool(told["ExitCode"] == 0)


@contextlib.contextmanager
def _ending() -> Iterator[None]:
    try:
        yield
    except NotFound as error:
        raise _Ended(is_unknown=True) from error
    except APIError as error:
        if error.status_code == HTTPStatus.CONFLICT:
            raise _Ended(is_unknown=False) from error
        raise


def _usage(client: docker.DockerClient, container: Observed) -> ServiceUsage | None:
    """One container's figures (Engine API, ContainerStats); None if it has just ended."""
    try:
        figures: dict[str, Any] = client.api.stats(container.container_id, stream=False)
    except NotFound:
        return None
    cpu, before = figures.get("cpu_stats", {}), figures.get("precpu_stats", {})
    memory, networks = figures.get("memory_stats", {}), (figures.get("networks") or {}).values()
    spent = cpu.get("cpu_usage", {}).get("total_usage", 0) - before.get("cpu_usage", {}).get("total_usage", 0)
    passed = cpu.get("system_cpu_usage", 0) - before.get("system_cpu_usage", 0)
    cached = memory.get("stats", {}).get("inactive_file", 0)
    blocks = figures.get("blkio_stats", {}).get("io_service_bytes_recursive") or []
    moved = {kind: sum(one["value"] for one in blocks if one["op"].lower() == kind) for kind in ("read", "write")}
    return ServiceUsage(
        service=container.service,
        cpu_percent=round(100.0 * spent / passed * cpu.get("online_cpus", 1), 2) if passed > 0 else 0.0,
        memory_bytes=max(0, memory.get("usage", 0) - cached),
        memory_limit_bytes=memory.get("limit", 0),
        pids=figures.get("pids_stats", {}).get("current", 0),
        received_bytes=sum(one["rx_bytes"] for one in networks),
        sent_bytes=sum(one["tx_bytes"] for one in networks),
        read_bytes=moved["read"],
        written_bytes=moved["write"],
    )


def _image_record(client: docker.DockerClient, row: dict[str, Any]) -> ImageRecord:
    try:
        digests = client.images.get(row["ImageID"]).attrs.get("RepoDigests") or []
    except ImageNotFound:
        digests = []
    return ImageRecord(row["Image"], row["ImageID"], digests[0] if digests else None)


def _health(state: str, words: str) -> Health:
    if state == "running":
        return next((health for mark, health in _HEALTH_WORDS.items() if words.endswith(mark)), Health.HEALTHY)
    return {"restarting": Health.UNHEALTHY, "created": Health.STARTING}.get(state, Health.STOPPED)


def _remove_project(client: docker.DockerClient, project: str, *, volumes: bool) -> None:
    wanted: dict[str, Any] = {"label": f"{_PROJECT_LABEL}={project}"}
    for _ in range(_LEFTOVER_PASSES):
        removals: list[Callable[[], Any]] = [
            *(lambda one=one: one.remove(force=True, v=True)
              for one in client.containers.list(all=True, filters=wanted, ignore_removed=True)),
            *(lambda one=one: one.remove() for one in client.networks.list(filters=wanted)),
            *(lambda one=one: one.remove(force=True) for one in client.volumes.list(filters=wanted) if volumes),
        ]  # fmt: skip
        if not removals:
            return
        for remove in removals:
            with contextlib.suppress(NotFound):
                remove()
