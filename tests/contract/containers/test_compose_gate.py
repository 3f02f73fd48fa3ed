"""The policy gate on compose files as their owners write them, through the dry run."""

from typing import Any

import httpx
import pytest
import yaml

from services.containers.domain import own_compose
from tests.contract.containers.harness import Service
from tests.corpora.compose import own, refused

CANARY = "canary-5b1e"


async def checked(service: Service, text: str, **fields: Any) -> httpx.Response:
    user = await service.new_user()
    body = {"name": "x", "compose": text, "file_manager": False, **fields}
    return await service.http.post("/api/v1/stacks/validate", headers=service.as_user(user), json=body)


def pointers(answer: httpx.Response) -> set[str]:
    return {error["pointer"] for error in answer.json()["errors"]}


@pytest.mark.parametrize("name", own.ACCEPTED)
async def test_an_ordinary_file_is_accepted_and_runs_limited(service: Service, name: str) -> None:
    answer = await checked(service, own.ACCEPTED[name], variables=own.VARIABLES)
    assert answer.status_code == 200, answer.text
    model = yaml.safe_load(answer.json()["compose"])
    for one in model["services"].values():
        assert {"cpus", "mem_limit", "memswap_limit", "pids_limit", "logging", "labels"} <= one.keys()
        assert one["security_opt"] == ["no-new-privileges:true"]
        assert all(port["host_ip"] == "127.0.0.1" for port in one["ports"])


@pytest.mark.parametrize("name", own.REFUSED)
async def test_a_hostile_file_is_refused_by_its_yaml_path(service: Service, name: str) -> None:
    path, text = own.REFUSED[name]
    answer = await checked(service, text)
    assert answer.status_code == 422, answer.text
    assert answer.json()["type"] == "/problems/compose-refused"
    assert f"/compose/{path}" in pointers(answer), answer.json()["errors"]


@pytest.mark.parametrize("name", [*refused.CASES, *refused.UNREADABLE])
async def test_what_is_refused_as_a_model_is_refused_as_a_file(service: Service, name: str) -> None:
    text = refused.CASES[name][1] if name in refused.CASES else refused.UNREADABLE[name]
    answer = await checked(service, text)
    assert answer.status_code == 422, answer.text


def test_the_corpus_is_large_enough() -> None:
    assert len(own.REFUSED) >= 80


async def test_nothing_of_the_servers_environment_gets_into_a_file(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANARY", CANARY)
    texts = ["${CANARY}", "${CANARY:-}", "${CANARY-none}", "${CANARY:+set}", "${CANARY+set}", "$CANARY", "$$CANARY"]
    for text in texts:
        answer = await checked(service, f"services: {{web: {{image: x, command: ['{text}'], working_dir: '/a'}}}}")
        assert CANARY not in answer.text
        assert "set" not in yaml.safe_load(answer.json().get("compose") or "{}").get("services", {}).get("web", {}).get(
            "command", []
        )


async def test_a_variable_does_not_ask_for_the_servers_environment(service: Service) -> None:
    text = "services: {web: {image: x, environment: ['${A:-=}']}}"
    answer = await checked(service, text, variables={"A": "PATH"})
    assert (answer.status_code, pointers(answer)) == (422, {"/compose/services.web.environment[0]"}), answer.text
    answer = await checked(service, text, variables={"A": "PATH=/bin"})
    assert yaml.safe_load(answer.json()["compose"])["services"]["web"]["environment"] == {"PATH": "/bin"}


async def test_a_stack_opens_so_many_ports_and_no_more(service: Service) -> None:
    for count, status in ((own_compose.MAX_PORTS, 200), (own_compose.MAX_PORTS + 1, 422)):
        ports = [str(port) for port in range(1000, 1000 + count)]
        answer = await checked(service, f"services: {{web: {{image: x, ports: {ports}}}, other: {{image: x}}}}")
        assert answer.status_code == status, answer.text


async def test_types_are_checked_in_the_same_dry_run_and_nothing_is_made(service: Service) -> None:
    user = await service.new_user()
    headers, path = service.as_user(user), "/api/v1/stacks/validate"
    good = {"name": "x", "service_types": ["php", "mariadb"], "limits": {"memory_mib": 300}}
    answer = await service.http.post(path, headers=headers, json=good)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told["services"] == ["php", "mariadb", "filemanager"]
    assert told["reserves"] == {"stacks": 1, "cores": 2, "memory_mib": 300 + 300 + 128}
    assert yaml.safe_load(told["compose"])["services"]["php"]["environment"]["DB_HOST"] == "mariadb"
    wrong = await service.http.post(path, headers=headers, json={"name": "x", "service_types": ["cobol"]})
    assert pointers(wrong) == {"/body/service_types/0"}
    both = await checked(service, "services: {a: {image: x}}", service_types=["php"])
    assert pointers(both) == {"/body/compose"}
    open_type = {"name": "x", "git_repo_url": "https://example.org/x.git"}
    answer = await service.http.post(path, headers=headers, json=open_type)
    assert (answer.status_code, answer.json()["compose"]) == (200, None)
    assert service.folders() == []
    assert service.used(user) == {}
