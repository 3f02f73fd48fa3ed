"""Stack states, templates, and the compose file that is written of them."""

from typing import Any

import pytest

from services.containers.adapters.templates import FolderCatalog
from services.containers.domain.compose import Plan, PlannedService, grants_of, labels_of, render
from services.containers.domain.policy import violations
from services.containers.domain.stacks import (
    Action,
    Health,
    Limits,
    Observed,
    StackService,
    State,
    begin,
    overall_health,
)
from services.containers.domain.templates import Template, choose
from services.containers.errors import InvalidStack, StackState

TEMPLATES = FolderCatalog().templates
MOST = Limits(cpus=2, memory_mib=2048, pids=512)


def plan_of(*templates: Template, **values: Any) -> Plan:
    services = [
        PlannedService(StackService(one.name, one.name, one.port, 20_000 + place), one, "nginx:1.29", values, "node:22")
        for place, one in enumerate(templates)
    ]
    return Plan(
        project="telar-0123456789ab",
        labels=labels_of("stack", "owner", 1),
        services=services,
        primary=templates[0].name,
        code_folder="/srv/stacks/$HOME/code",
        publish_address="127.0.0.1",
        limits=Limits(cpus=0.5, memory_mib=256, pids=128),
        build_limits=MOST,
    )


@pytest.mark.parametrize(
    ("action", "state", "during"),
    [
        (Action.START, State.STOPPED, State.STARTING),
        (Action.STOP, State.RUNNING, State.STOPPING),
        (Action.RESTART, State.RUNNING, State.RESTARTING),
        (Action.DELETE, State.FAILED, State.DELETING),
    ],
)
def test_an_action_has_a_state_of_its_own_while_it_lasts(action: Action, state: State, during: State) -> None:
    assert begin(action, state) is during


@pytest.mark.parametrize("state", [State.CREATING, State.STARTING, State.STOPPING, State.RESTARTING, State.DELETING])
@pytest.mark.parametrize("action", list(Action))
def test_nothing_begins_while_something_else_is_under_way(action: Action, state: State) -> None:
    with pytest.raises(StackState):
        begin(action, state)


@pytest.mark.parametrize("action", [Action.START, Action.STOP, Action.RESTART])
def test_a_failed_stack_can_only_be_deleted(action: Action) -> None:
    with pytest.raises(StackState, match="delete it"):
        begin(action, State.FAILED)


def test_the_templates_names_are_matched_in_any_case() -> None:
    choice = choose(TEMPLATES, ["PHP", "sTaTiC"], "Php")
    assert [template.name for template in choice.templates] == ["php", "static"]
    assert choice.primary.name == "php"


def test_the_same_type_twice_is_one_service() -> None:
    assert len(choose(TEMPLATES, ["static", "Static"], None).templates) == 1


@pytest.mark.parametrize(
    ("types", "primary", "pointer"),
    [
        ([], None, "/body/service_types"),
        (["static", "cobol"], None, "/body/service_types/1"),
        (["static"], "php", "/body/primary_app_type"),
        (["static"], "cobol", "/body/primary_app_type"),
    ],
)
def test_a_wrong_choice_is_told_by_its_field(types: list[str], primary: str | None, pointer: str) -> None:
    with pytest.raises(InvalidStack) as caught:
        choose(TEMPLATES, types, primary)
    assert caught.value.errors[0].pointer == pointer


def test_every_service_is_limited_labelled_and_hardened() -> None:
    model = render(plan_of(*choose(TEMPLATES, ["static", "php"], None).templates, app_env="production"))
    for service in model["services"].values():
        assert (service["cpus"], service["mem_limit"], service["pids_limit"]) == (0.5, str(256 << 20), 128)
        assert service["labels"]["telar.stack"] == "stack"
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["restart"] == "unless-stopped"
        assert service["healthcheck"]["test"]
        assert service["read_only"] is True
    mounts = {name: service["volumes"] for name, service in model["services"].items()}
    assert [name for name, mounted in mounts.items() if mounted] == ["static"]


def test_a_variable_never_becomes_more_than_a_text() -> None:
    php = choose(TEMPLATES, ["php"], None).primary
    hostile = "x\n    privileged: true\n$HOME ${CANARY}"
    plan = plan_of(php, app_env=hostile)
    model = render(plan)
    assert model["services"]["php"]["environment"]["APP_ENV"] == hostile.replace("$", "$$")
    assert violations(model, grants_of(plan, MOST)) == []


def test_a_variable_outside_its_schema_is_told_by_its_name() -> None:
    catalog = FolderCatalog()
    php = choose(catalog.templates, ["php"], None).primary
    assert catalog.complete(php, {}) == {"app_env": "production"}
    with pytest.raises(InvalidStack) as caught:
        catalog.complete(php, {"app_env": "other"})
    assert caught.value.errors[0].pointer == "/body/variables/app_env"


def test_limits_above_the_operators_are_refused() -> None:
    with pytest.raises(InvalidStack) as caught:
        Limits(cpus=1, memory_mib=4096, pids=10).require_within(MOST)
    assert caught.value.errors[0].pointer == "/body/limits/memory_mib"


def test_a_stack_is_as_well_as_its_worst_container() -> None:
    def container(health: Health) -> Observed:
        return Observed("p", "s", "id", "image", "running", health)

    assert overall_health([]) is Health.UNKNOWN
    assert overall_health([container(Health.HEALTHY)]) is Health.HEALTHY
    assert overall_health([container(Health.HEALTHY), container(Health.UNHEALTHY)]) is Health.UNHEALTHY
    assert overall_health([container(Health.STOPPED), container(Health.STARTING)]) is Health.STARTING
