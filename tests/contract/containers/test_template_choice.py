"""Which templates a caller may have, told before anything is made."""

from pathlib import Path
from typing import Any

import pytest

from tests.contract.containers.harness import Service, running


async def test_macos_is_for_administrators_and_needs_an_image_of_the_operators(service: Service) -> None:
    user = await service.new_user()
    answer = await service.create(user, service_types=["macOS"])
    assert answer.status_code == 403
    assert answer.json()["type"] == "/problems/administrators-only"
    admin = service.as_user(user, role="ADMIN")
    answer = await service.create(user, service_types=["macOS"], headers=admin)
    assert answer.status_code == 422
    assert "TELAR_CONTAINERS_IMAGES" in answer.json()["detail"]
    older = {"userid": user, "service_name": "mac", "service_types": "macOS"}
    answer = await service.http.post("/service", headers=service.as_user(user), data=older, files={"zip_file": b""})
    assert answer.status_code == 403
    assert service.folders() == []


async def test_macos_is_refused_where_a_swarm_would_leave_out_its_device(database_url: str, tmp_path: Path) -> None:
    absent = f"unix://{tmp_path}/no-engine.sock"
    options: dict[str, Any] = {"docker_host": absent, "images": {"macos": "macos:1"}}
    for orchestrator, status in (("swarm", 422), ("compose", 200)):
        async with running(database_url, tmp_path, orchestrator=orchestrator, **options) as service:
            admin = service.as_user(await service.new_user(), role="ADMIN")
            asked = {"name": "mac", "service_types": ["macOS"], "file_manager": False}
            answer = await service.http.post("/api/v1/stacks/validate", headers=admin, json=asked)
        assert answer.status_code == status, answer.text
        if status == 422:
            assert answer.json()["errors"][0]["pointer"] == "/body/service_types"
            assert "/dev/kvm" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("variables", "pointer"),
    [
        ({"mariadb_password": "too short"}, "/body/variables/mariadb_password"),
        ({"mariadb_database": "a`b"}, "/body/variables/mariadb_database"),
        ({"mariadb_user": "root"}, "/body/variables/mariadb_user"),
        ({"mysql_password": "of-another-template"}, "/body/variables/mysql_password"),
        ({"admin_pass": "of-the-file-manager"}, "/body/variables/admin_pass"),
    ],
)
async def test_a_wrong_variable_is_named(service: Service, variables: dict[str, str], pointer: str) -> None:
    answer = await service.create(await service.new_user(), service_types=["MariaDB"], variables=variables)
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]


async def test_templates_tell_their_variables_and_which_are_secrets(service: Service) -> None:
    headers = service.as_user(await service.new_user())
    listed = (await service.http.get("/api/v1/stack-templates", headers=headers)).json()
    shown = {one["name"]: one for one in listed}
    assert "filemanager" not in shown
    assert shown["mariadb"]["kind"] == "backing"
    assert shown["mariadb"]["variables"]["properties"]["mariadb_password"]["format"] == "password"
    assert "FerretDB" in shown["mongodb"]["description"]
