"""Docker Swarm behind the same ports: `docker stack deploy` runs a stack, its services' tasks are what is observed."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import docker
import yaml
from docker.errors import APIError, NotFound
from docker.types import CancellableStream

from services.containers.adapters.compose import ComposeCommand
from services.containers.adapters.engine import DockerEngine
from services.containers.domain.compose import COMPOSE_FILE, STACK_LABEL
from services.containers.domain.revisions import ImageRecord
from services.containers.domain.stacks import Health, Observed
from services.containers.domain.swarm import ends_by_itself, swarm_model, waves
from services.containers.errors import EngineBusy, EngineFailed

_NAMESPACE = "com.docker.stack.namespace"
_SWARM_FILE = "docker-stack.yml"
_POLL_S = 0.3
_LEAVING_S = 20.0
_FAILED = ("failed", "rejected", "orphaned")
_ENDED = ("complete", "shutdown", "remove")
_WORDS = {"running": ("running", Health.HEALTHY), "starting": ("running", Health.STARTING)}


class SwarmCommand(ComposeCommand):
    """Stacks on a Swarm; this engine is a manager. Files are resolved by Docker Compose as ever."""

    async def up(self, project: str, folder: Path) -> None:
        model = await asyncio.to_thread(_read, folder / COMPOSE_FILE)
        begun: list[str] = []
        ordered = waves(model)
        for place, wave in enumerate(ordered):
            begun += wave
            part = {**model, "services": {name: model["services"][name] for name in begun}}
            await asyncio.to_thread(_write, folder / _SWARM_FILE, swarm_model(part))
            prune = ("--prune",) if place == len(ordered) - 1 else ()
            await self._stack(folder, "deploy", "--compose-file", str(folder / _SWARM_FILE), *prune, project)
            if not prune:
                await asyncio.gather(*(self._waited(project, folder, model, name) for name in wave))

    async def down(self, project: str, folder: Path, *, keep_volumes: bool = False) -> None:  # noqa: ARG002 - volumes
        """Remove services and networks; the engine's `remove_project` removes volumes once no task has them."""
        await self._stack(folder, "rm", project)

    async def stop(self, project: str, folder: Path) -> None:
        model = await asyncio.to_thread(_read, folder / COMPOSE_FILE)
        scaled = [f"{project}_{name}=0" for name in model["services"]]
        await self.run(folder, "service", "scale", *scaled)

    async def _stack(self, folder: Path, command: str, *arguments: str) -> None:
        options = ("--resolve-image", "never", "--detach=true") if command == "deploy" else ()
        await self.run(folder, "stack", command, *options, *arguments)

    async def _waited(self, project: str, folder: Path, model: Mapping[str, Any], name: str) -> None:
        """Wait until others may start: until the service's task runs (which is: is healthy), or has done its work."""
        wanted = "Complete" if ends_by_itself(model, name) else "Running"
        form = ("--no-trunc", "--format", "{{.CurrentState}}\t{{.Error}}")
        while True:
            told = await self.run(folder, "service", "ps", *form, f"{project}_{name}")
            newest = told.splitlines()[0] if told else ""
            if newest.startswith(wanted):
                return
            if wanted == "Complete" and newest.startswith(("Failed", "Rejected")):
                raise EngineFailed(f"{name}: {newest.partition(chr(9))[2] or 'it failed'}")
            await asyncio.sleep(_POLL_S)


class SwarmEngine(DockerEngine):
    """Looks at a Swarm through its manager: tasks on all nodes, logs of services, containers of this node."""

    project_label = _NAMESPACE
    is_spread = True

    async def observe(self, project: str | None = None) -> Sequence[Observed]:
        return await self._in_thread(lambda client: _observe(client, project))

    async def images_of(self, project: str) -> dict[str, ImageRecord]:
        def look(client: docker.DockerClient) -> dict[str, ImageRecord]:
            records: dict[str, ImageRecord] = {}
            for service in _services(client, project):
                name: str = service["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"]
                with contextlib.suppress(NotFound):
                    found = client.images.get(name)
                    digests = found.attrs.get("RepoDigests") or [None]
                    records[_short(service, project)] = ImageRecord(name, str(found.id), digests[0])
            return records

        return await self._in_thread(look)

    async def remove_project(self, project: str, *, keep_volumes: bool = False) -> None:
        """Remove services, wait until their containers on this node are gone, then networks and volumes."""
        until = asyncio.get_running_loop().time() + _LEAVING_S
        while await self._in_thread(lambda client: _remove(client, project, volumes=not keep_volumes)):
            if asyncio.get_running_loop().time() > until:
                raise EngineBusy("The swarm is still ending the stack's tasks", retry_after_s=2)
            await asyncio.sleep(_POLL_S)

    def _opening(self, container: Observed, tail: int, *, follow: bool) -> Callable[[docker.DockerClient], Any]:
        wanted = {"stdout": True, "stderr": True, "follow": follow, "timestamps": True, "tail": str(tail)}
        return lambda client: _service_logs(client.api, f"{container.project}_{container.service}", wanted)


def _service_logs(api: Any, name: str, wanted: Mapping[str, Any]) -> "CancellableStream[bytes]":
    """What docker-py's `service_logs` gives, except that it can be closed while a thread waits for its next line."""
    response = api._get(api._url("/services/{0}/logs", name), params=wanted, stream=True)  # noqa: SLF001
    api._raise_for_status(response)  # noqa: SLF001 - there is no public way
    return CancellableStream(api._multiplexed_response_stream_helper(response), response)  # noqa: SLF001


def _services(client: docker.DockerClient, project: str | None) -> list[dict[str, Any]]:
    label = STACK_LABEL if project is None else f"{_NAMESPACE}={project}"
    return [service.attrs for service in client.services.list(filters={"label": label})]


def _short(service: Mapping[str, Any], project: str) -> str:
    return str(service["Spec"]["Name"]).removeprefix(f"{project}_")


def _observe(client: docker.DockerClient, project: str | None) -> list[Observed]:
    """The newest task of each service (Engine API, TaskList)."""
    services = _services(client, project)
    if not services:
        return []
    newest: dict[str, dict[str, Any]] = {}
    api: Any = client.api  # untyped in its stubs
    for task in api.tasks(filters={"service": [service["ID"] for service in services]}):
        known = newest.get(task["ServiceID"])
        if known is None or task["CreatedAt"] > known["CreatedAt"]:
            newest[task["ServiceID"]] = task
    return [_observed(service, newest.get(service["ID"])) for service in services]


def _observed(service: Mapping[str, Any], task: Mapping[str, Any] | None) -> Observed:
    project = service["Spec"]["Labels"].get(_NAMESPACE, "")
    status = (task or {}).get("Status", {})
    container = status.get("ContainerStatus") or {}
    state, health, code = _state(service, status.get("State", "new"), container)
    image: str = service["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"]
    identity = container.get("ContainerID", "")
    return Observed(project, _short(service, project), identity, image, state, health, code)


def _state(service: Mapping[str, Any], state: str, container: Mapping[str, Any]) -> tuple[str, Health, int | None]:
    code = container.get("ExitCode", 0)
    replicas = service["Spec"]["Mode"].get("Replicated", {}).get("Replicas", 1)
    restarts = service["Spec"]["TaskTemplate"].get("RestartPolicy", {}).get("Condition", "any")
    if replicas == 0:
        return "exited", Health.STOPPED, code
    if state in _FAILED:
        return ("exited" if restarts == "none" else "restarting"), Health.UNHEALTHY, code or 1
    if state in _ENDED:
        return "exited", Health.STOPPED, code
    known = _WORDS.get(state, ("created", Health.STARTING))
    return known[0] if container.get("ContainerID") else "created", known[1], None


def _remove(client: docker.DockerClient, project: str, *, volumes: bool) -> bool:
    """Remove what can be removed now; gives whether something is left."""
    wanted: dict[str, Any] = {"label": f"{_NAMESPACE}={project}"}
    left = False
    for service in _services(client, project):
        left = True
        with contextlib.suppress(NotFound):
            services: Any = client.services  # untyped in its stubs
            services.get(service["ID"]).remove()
    for container in client.containers.list(all=True, filters=wanted, ignore_removed=True):
        left = True
        if container.status in ("exited", "dead", "created"):
            with contextlib.suppress(APIError):
                container.remove(force=True, v=True)
    resources: list[Any] = [
        *client.networks.list(filters=wanted),
        *(client.volumes.list(filters=wanted) if volumes else []),
    ]
    for resource in resources:
        left = True
        with contextlib.suppress(APIError):  # a task has it still
            resource.remove()
    return left


def _read(path: Path) -> dict[str, Any]:
    model: dict[str, Any] = yaml.safe_load(path.read_text())
    return model


def _write(path: Path, model: Mapping[str, Any]) -> None:
    path.write_text(yaml.safe_dump(dict(model), sort_keys=False, allow_unicode=True))
