import pytest

from gateway.routes import ROUTES, cost_of, missing_scope, route_of
from libs.common.auth import Principal, Role


def caller(*scopes: str) -> Principal:
    return Principal("u", "ada", Role.CLIENT, "s", frozenset(scopes), 0.0, 9e9)


@pytest.mark.parametrize(
    ("path", "service"),
    [
        ("/api/v1/users/", "auth"),
        ("/api/v1/users/me/password", "auth"),
        ("/users", "auth"),
        ("/api/v1/images/1/download", "images"),
        ("/api/v1/virtual-machines/7", "vms"),
        ("/control-vm/100/start", "vms"),
        ("/service-types", "containers"),
        ("/service", "containers"),
        ("/control-service/3/restart", "containers"),
        ("/api/v1/download/collection/a/b", "fetcher"),
        ("/api/v1/operations/op_vms_" + "0" * 32, "vms"),
        ("/api/v1/operations/op_images_" + "0" * 32 + "/events", "images"),
    ],
)
def test_a_path_belongs_to_one_service(path: str, service: str) -> None:
    route = route_of(path)
    assert route is not None
    assert route.service == service


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/docs",
        "/api/v1/login",
        "/api/v1/operations",
        "/api/v1/operations/op_nobody_" + "0" * 32,
        "/internal/login",
        "/users/ext-7",
        "/api/v1/usersx",
        "/servicex",
        "/API/v1/users",
        "//api/v1/users",
        "",
    ],
)
def test_any_other_path_is_the_gateways_own_to_answer(path: str) -> None:
    assert route_of(path) is None


def test_no_internal_route_is_in_the_table() -> None:
    assert not [path for path in ROUTES if "internal" in path]


def test_a_key_needs_the_area_to_write_and_its_read_scope_to_read() -> None:
    route = ROUTES["/api/v1/vms"]
    assert missing_scope(route, "GET", caller("vms:read")) is None
    assert missing_scope(route, "POST", caller("vms:read")) == "vms"
    assert missing_scope(route, "POST", caller("vms")) is None
    assert missing_scope(route, "GET", caller("read")) is None
    assert missing_scope(route, "DELETE", caller("read", "images")) == "vms"
    assert missing_scope(route, "DELETE", caller("*")) is None


def test_a_key_needs_a_services_scope_for_its_operations() -> None:
    route = route_of("/api/v1/operations/op_containers_" + "0" * 32)
    assert route is not None
    assert missing_scope(route, "DELETE", caller("stacks:read")) == "stacks"
    assert missing_scope(route, "GET", caller("stacks:read")) is None
    assert missing_scope(route, "GET", caller("vms")) == "stacks:read"


def test_only_registration_what_the_server_knows_of_tus_and_linked_files_need_no_login() -> None:
    assert {path: route.anonymous for path, route in ROUTES.items() if route.anonymous} == {
        "/api/v1/users": {"POST"},
        "/api/v1/uploads": {"OPTIONS"},
        "/api/v1/image-files": {"GET", "HEAD"},
    }


def test_a_consoles_socket_needs_no_login_because_its_ticket_speaks() -> None:
    socket = route_of("/api/v1/vms/01890000-0000-7000-8000-000000000000/console/ws")
    assert socket is not None
    assert (socket.service, socket.anonymous) == ("vms", {"WEBSOCKET"})
    for other in ("/api/v1/vms/1/console", "/api/v1/vms/1/2/console/ws", "/api/v1/vms/1/console/ws/x"):
        route = route_of(other)
        assert route is not None
        assert not route.anonymous


def test_writing_costs_more_than_reading() -> None:
    assert all(cost_of(route, "POST") > cost_of(route, "GET") for route in ROUTES.values())
