"""Revisions that run again, what is forgotten, what the engine's word makes of a stack, and what Swarm takes."""

import pytest

from services.containers.domain.compose import render
from services.containers.domain.revisions import rebased, to_prune
from services.containers.domain.routing import host_name
from services.containers.domain.stacks import OWN, Health, Limits, Observed, StackService, State, found_state, quota_of
from services.containers.domain.swarm import ends_by_itself, swarm_model, waves
from tests.contract.containers.plans import chosen, plan_of

WEB, JOB = StackService("web", "static", 80, 20_000), StackService("job", OWN)


def container(service: str, state: str, health: Health, code: int | None = None) -> Observed:
    return Observed("p", service, "id", "image", state, health, code)


def test_a_revision_runs_again_with_its_own_labels_ports_code_and_images() -> None:
    model = render(plan_of(chosen("php", "mariadb"), with_sidecar=True))
    services = [StackService(name, name, port, 30_000 + port) for name, port in (("php", 80), ("mariadb", 3306))]
    services.append(StackService("filemanager", "filemanager", 80, 31_000))
    again = rebased(
        model,
        labels={"telar.revision": "7"},
        code_folder="/srv/code-7",
        services=services,
        publish_address="192.0.2.1",  # an operator's setting, which may have changed since it ran
        images={"php": "sha256:1"},
        routes={"php": {"traefik.enable": "true"}},
    )
    assert again["services"]["php"]["image"] == "sha256:1"
    assert again["services"]["mariadb"]["image"] == model["services"]["mariadb"]["image"]
    (port,) = again["services"]["php"]["ports"]
    assert (port["published"], port["host_ip"]) == ("30080", "192.0.2.1")
    binds = [m["source"] for one in again["services"].values() for m in one["volumes"] if m["type"] == "bind"]
    assert set(binds) == {"/srv/code-7"}
    assert again["services"]["php"]["labels"]["telar.revision"] == "7"
    assert "traefik.enable" not in again["services"]["mariadb"]["labels"]
    assert model["services"]["php"]["labels"]["telar.revision"] == "1"


@pytest.mark.parametrize(
    ("numbers", "current", "keep", "forgotten"),
    [([3, 2, 1], 3, 2, [1]), ([3, 2, 1], 1, 1, [2]), ([3, 2, 1], 3, 9, []), ([], 1, 1, []), ([5, 4, 3], 3, 1, [4])],
)
def test_the_newest_revisions_and_the_one_that_runs_are_kept(
    numbers: list[int], current: int, keep: int, forgotten: list[int]
) -> None:
    assert to_prune(numbers, current, keep) == forgotten


@pytest.mark.parametrize(
    ("containers", "state", "health"),
    [
        ([], State.RUNNING, Health.UNKNOWN),
        ([container("web", "running", Health.HEALTHY)], State.RUNNING, Health.UNHEALTHY),
        (
            [container("web", "running", Health.HEALTHY), container("job", "exited", Health.STOPPED, 0)],
            *("running", "healthy"),
        ),
        (
            [container("web", "running", Health.HEALTHY), container("job", "exited", Health.STOPPED, 1)],
            *("running", "unhealthy"),
        ),
        (
            [container("web", "exited", Health.STOPPED, 0), container("job", "exited", Health.STOPPED, 0)],
            *("stopped", "stopped"),
        ),
        (
            [container("web", "restarting", Health.UNHEALTHY), container("job", "exited", Health.STOPPED, 0)],
            *("running", "unhealthy"),
        ),
    ],
)
def test_containers_tell_what_a_stack_is_and_their_absence_proves_nothing(
    containers: list[Observed], state: State, health: Health
) -> None:
    found = found_state(State.RUNNING, [WEB, JOB], containers)
    assert (found.state, found.health) == (state, health)


def test_parts_of_a_core_count_as_one() -> None:
    assert quota_of([Limits(0.5, 256, 1), Limits(0.25, 128, 1)]) == {"stacks": 1, "cores": 1, "memory_mib": 384}
    assert quota_of([Limits(0.1, 1, 1)] * 10)["cores"] == 1
    assert quota_of([Limits(0.5, 1, 1)] * 3)["cores"] == 2


@pytest.mark.parametrize(("name", "host"), [("My Site!", "my-site-7"), ("***", "stack-7"), ("a" * 90, "a" * 40 + "-7")])
def test_a_stacks_host_name_is_readable_and_its_own(name: str, host: str) -> None:
    assert host_name(name, 7, "example.org") == f"{host}.example.org"


def test_swarm_takes_the_same_stack_in_its_own_words_and_in_order() -> None:
    model = render(plan_of(chosen("nodejs", "mariadb")))
    assert waves(model) == [["nodejs-build", "mariadb"], ["nodejs"]]
    assert ends_by_itself(model, "nodejs-build")
    assert not ends_by_itself(model, "mariadb")
    swarm = swarm_model(model)
    app, build = swarm["services"]["nodejs"], swarm["services"]["nodejs-build"]
    assert app["deploy"]["resources"]["limits"] == {"cpus": "0.5", "memory": str(256 << 20), "pids": 128}
    assert (app["deploy"]["restart_policy"]["condition"], build["deploy"]["restart_policy"]["condition"]) == (
        "any",
        "none",
    )
    assert {"type": "tmpfs", "target": "/tmp", "tmpfs": {"size": 64 << 20}} in app["volumes"]  # noqa: S108 - of a container
    assert app["ports"][0].keys() == {"mode", "protocol", "target", "published"}
    assert swarm["networks"]["default"]["driver"] == "overlay"
    assert waves({"services": {"a": {"depends_on": {"b": {}}}, "b": {"depends_on": {"a": {}}}}}) == [["a", "b"]]
