"""The templates themselves, and what their data means in a compose file."""

import re
from typing import Any

import pytest

from services.containers.domain.compose import Plan, grants_of, render
from services.containers.domain.policy import violations
from services.containers.domain.templates import choose, offered, starter_of
from services.containers.errors import AdministratorsOnly, InvalidStack
from tests.contract.containers.plans import CATALOG, MOST, chosen, plan_of

OFFERED = {template.name for template in offered(CATALOG.templates)}
KEEPS_ROOT = {"static", "php", "macos"}
"""Their images begin as root and give their rights up by themselves."""


def services_of(plan: Plan) -> dict[str, Any]:
    services: dict[str, Any] = render(plan)["services"]
    return services


def texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for inner in value.values() for text in texts(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in texts(inner)]
    return [value] if isinstance(value, str) else []


def test_every_promised_type_is_offered_and_the_file_manager_is_no_type() -> None:
    promised = "static php nodejs python react mysql postgresql mariadb mongodb redis wordpress macos"
    assert set(promised.split()) == OFFERED
    with pytest.raises(InvalidStack):
        chosen("file manager")
    titles = {template.title for template in CATALOG.templates}
    assert {"Static", "PHP", "Node.js", "MySQL", "PostgreSQL", "React", "macOS"} < titles


@pytest.mark.parametrize("name", sorted(OFFERED))
def test_a_stack_of_each_type_passes_the_policy_gate_whole(name: str) -> None:
    plan = plan_of(chosen(name), with_sidecar=True)
    model = render(plan)
    assert violations(model, grants_of(plan, MOST)) == []
    assert [text for text in texts(model) if re.search(r"\{\{|\}\}", text)] == []
    for service in model["services"].values():
        assert service["pids_limit"]
        assert service["mem_limit"]
        assert service["cpus"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_all_types_together_pass_the_policy_gate() -> None:
    plan = plan_of(chosen(*sorted(OFFERED)), with_sidecar=True)
    assert violations(render(plan), grants_of(plan, MOST)) == []


@pytest.mark.parametrize("name", sorted(OFFERED | {"filemanager"}))
def test_each_service_is_watched_restarted_and_holds_no_right_it_does_not_need(name: str) -> None:
    services = services_of(plan_of(chosen("static" if name == "filemanager" else name), with_sidecar=True))
    service = services[name]
    assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    assert service["restart"] == "unless-stopped"
    if name not in KEEPS_ROOT:
        assert service["cap_drop"] == ["ALL"]
        assert service["user"] not in ("0", "root", "0:0")
    if name != "macos":
        assert service["read_only"] is True
        assert all(":size=" in tmpfs for tmpfs in service["tmpfs"])


def test_secrets_are_made_up_fit_their_own_rules_and_differ() -> None:
    found: list[object] = []
    for template in CATALOG.templates:
        names = [name for name, rule in template.variables["properties"].items() if rule.get("format") == "password"]
        values = CATALOG.complete(template, {})
        again = CATALOG.complete(template, dict(values))
        assert again == values
        found += [values[name] for name in names]
    assert len(found) == 8
    assert len(set(found)) == len(found)
    assert all(isinstance(one, str) and len(one) >= 32 for one in found)


@pytest.mark.parametrize("secret", ["short", "has spaces in it", "--requirepass-twice", "quote'quote'quote"])
def test_a_secret_that_would_not_fit_is_refused_without_being_repeated(secret: str) -> None:
    redis = chosen("redis").primary
    with pytest.raises(InvalidStack) as caught:
        CATALOG.complete(redis, {"redis_password": secret})
    assert caught.value.errors[0].pointer == "/body/variables/redis_password"
    assert secret not in caught.value.detail


def test_wordpress_brings_a_database_unless_one_is_named() -> None:
    assert [one.name for one in chosen("WordPress").templates] == ["wordpress", "mariadb"]
    assert [one.name for one in chosen("wordpress", "mysql").templates] == ["wordpress", "mysql"]
    assert chosen("wordpress").primary.name == "wordpress"
    services = services_of(plan_of(chosen("wordpress", "mysql"), mysql_password="p4ssword-of-the-app"))
    assert services["wordpress"]["environment"]["WORDPRESS_DB_HOST"] == "mysql"
    assert services["wordpress"]["environment"]["WORDPRESS_DB_PASSWORD"] == "p4ssword-of-the-app"


def test_apps_learn_of_the_services_behind_them_and_wait_for_them() -> None:
    plan = plan_of(chosen("php", "postgresql", "mariadb", "redis"), postgres_password="secret-of-postgres")
    services = services_of(plan)
    php = services["php"]
    assert php["environment"]["PGHOST"] == "postgresql"
    assert php["environment"]["DB_HOST"] == "mariadb"
    assert php["environment"]["APP_ENV"] == "production"
    assert php["environment"]["DATABASE_URL"] == "postgresql://app:secret-of-postgres@postgresql:5432/app"
    assert php["depends_on"] == {name: {"condition": "service_healthy"} for name in ("postgresql", "mariadb", "redis")}
    assert "depends_on" not in services["redis"]
    assert "DB_PASSWORD" not in services["redis"]["environment"]


def test_volumes_are_named_after_their_service_and_belong_to_the_stack() -> None:
    model = render(plan_of(chosen("mariadb", "postgresql")))
    assert set(model["volumes"]) == {"mariadb-data", "postgresql-data"}
    assert model["volumes"]["mariadb-data"]["name"] == "telar-0123456789ab_mariadb-data"
    assert model["volumes"]["mariadb-data"]["labels"]["telar.stack"] == "stack"
    assert model["services"]["mariadb"]["volumes"] == [
        {"type": "volume", "source": "mariadb-data", "target": "/var/lib/mysql"}
    ]


@pytest.mark.parametrize("name", ["nodejs", "python", "react"])
def test_a_build_runs_once_before_its_service_and_within_limits(name: str) -> None:
    services = services_of(plan_of(chosen(name)))
    build, service = services[f"{name}-build"], services[name]
    assert build["restart"] == "no"
    assert (build["cpus"], build["mem_limit"], build["pids_limit"]) == (2, str(2048 << 20), 512)
    assert "ports" not in build
    assert service["depends_on"] == {f"{name}-build": {"condition": "service_completed_successfully"}}
    assert (build["image"], service["image"]) == ("builder:1", "web:1")
    assert build["environment"]["npm_config_registry"] == "https://npm.example/$$x"
    code = [mount for mount in build["volumes"] if mount["type"] == "bind"]
    assert [(mount["target"], mount["read_only"]) for mount in code] == [("/code", True)]
    assert {mount["source"] for mount in service["volumes"]} == {f"{name}-built"}
    assert all(mount["read_only"] for mount in service["volumes"])


def test_only_the_primary_app_and_builds_get_the_code_and_only_sidecars_may_change_it() -> None:
    services = services_of(plan_of(chosen("php", "static", "react"), with_sidecar=True))
    mounted = {
        name: mount["read_only"]
        for name, service in services.items()
        for mount in service["volumes"]
        if mount["type"] == "bind"
    }
    assert mounted == {"php": True, "react-build": True, "filemanager": False}
    assert services["filemanager"]["user"] == "1234:1234"


def test_a_writable_mount_that_was_not_granted_is_refused() -> None:
    plan = plan_of(chosen("static"), with_sidecar=True)
    grants = grants_of(plan_of(chosen("static")), MOST)
    assert "services.filemanager.volumes[0].source" in {one.path for one in violations(render(plan), grants)}
    model = render(plan_of(chosen("static")))
    model["services"]["static"]["volumes"][0]["read_only"] = False
    assert [one.path for one in violations(model, grants)] == ["services.static.volumes[0].read_only"]


def test_macos_is_for_administrators_and_its_device_for_no_other_stack() -> None:
    with pytest.raises(AdministratorsOnly):
        choose(CATALOG.templates, ["macOS"], None)
    plan = plan_of(chosen("macos"))
    model = render(plan)
    assert model["services"]["macos"]["devices"] == ["/dev/kvm:/dev/kvm"]
    other = grants_of(plan_of(chosen("static")), MOST)
    assert "services.macos.devices" in {one.path for one in violations(model, other)}
    model["services"]["macos"]["devices"] = ["/dev/kvm:/dev/kvm", "/dev/sda:/dev/sda"]
    assert [one.path for one in violations(model, grants_of(plan, MOST))] == ["services.macos.devices"]


def test_without_code_the_primary_app_begins_at_the_root_and_other_builds_in_their_own_folder() -> None:
    names = [name for name, _ in starter_of(chosen("react", "nodejs", "static").templates, "react")]
    assert names == ["build.js", "package.json", "nodejs/package.json", "nodejs/server.js"]


def test_a_variable_stays_inside_the_text_it_is_put_into() -> None:
    hostile = 'x"]\n    privileged: true\n$HOME ${CANARY} {{nodejs_env}}'
    plan = plan_of(chosen("nodejs"), nodejs_command=hostile)
    assert services_of(plan)["nodejs"]["command"] == ["sh", "-c", hostile.replace("$", "$$")]
    assert violations(render(plan), grants_of(plan, MOST)) == []
