"""Compose files that must never run: each with the YAML path that its refusal has to name."""

import copy
from typing import Any

import yaml

PROJECT = "telar-000000000001"
CODE = "/srv/telar/stacks/1/code"
HOST_PORT = 20500

ALLOWED: dict[str, Any] = {
    "name": PROJECT,
    "services": {
        "web": {
            "image": "nginx:1.29-alpine",
            "cpus": 0.5,
            "mem_limit": "256m",
            "pids_limit": 64,
            "restart": "unless-stopped",
            "environment": {"PRICE": "5 $$"},
            "logging": {"driver": "json-file", "options": {"max-size": "10m", "max-file": "3"}},
            "networks": {"default": None},
            "ports": [{"target": 80, "published": str(HOST_PORT), "host_ip": "127.0.0.1", "protocol": "tcp"}],
            "volumes": [
                {"type": "bind", "source": CODE, "target": "/usr/share/nginx/html", "read_only": True},
                {"type": "volume", "source": "data", "target": "/data"},
            ],
        }
    },
    "networks": {"default": {"name": PROJECT}},
    "volumes": {"data": None},
}
"""The plainest file that the gate lets pass; each case below spoils one thing in it."""


def with_service(**changes: Any) -> str:
    document = copy.deepcopy(ALLOWED)
    document["services"]["web"].update(changes)
    return yaml.safe_dump(document)


def with_top(**changes: Any) -> str:
    return yaml.safe_dump({**copy.deepcopy(ALLOWED), **changes})


def without(key: str) -> str:
    document = copy.deepcopy(ALLOWED)
    del document["services"]["web"][key]
    return yaml.safe_dump(document)


def mount(**changes: Any) -> str:
    return with_service(volumes=[{"type": "bind", "target": "/mnt", "read_only": True, **changes}])


def port(**changes: Any) -> str:
    return with_service(ports=[{**ALLOWED["services"]["web"]["ports"][0], **changes}])


WEB = "services.web"
_FORBIDDEN_KEYS: dict[str, Any] = {
    "privileged": True,
    "cap_add": ["SYS_ADMIN"],
    "devices": ["/dev/kvm:/dev/kvm"],
    "device_cgroup_rules": ["c 1:3 mr"],
    "gpus": "all",
    "pid": "host",
    "ipc": "host",
    "uts": "host",
    "userns_mode": "host",
    "network_mode": "host",
    "cgroup": "host",
    "cgroup_parent": "/system.slice",
    "runtime": "sysbox",
    "isolation": "process",
    "sysctls": {"net.ipv4.ip_forward": "1"},
    "ulimits": {"nofile": 1000000},
    "extends": {"file": "/etc/passwd", "service": "x"},
    "env_file": ["/etc/shadow"],
    "label_file": "/etc/passwd",
    "build": {"context": "/"},
    "secrets": ["key"],
    "configs": ["hosts"],
    "credential_spec": {"file": "x.json"},
    "volumes_from": ["container:other"],
    "external_links": ["other"],
    "links": ["container:other"],
    "container_name": "postgres",
    "hostname": "gateway",
    "extra_hosts": ["metadata:169.254.169.254"],
    "dns": ["10.0.0.1"],
    "group_add": ["docker"],
    "oom_kill_disable": True,
    "oom_score_adj": -1000,
    "storage_opt": {"size": "1T"},
    "shm_size": "64g",
    "blkio_config": {"weight": 1000},
    "cpu_rt_runtime": "400ms",
    "mac_address": "02:00:00:00:00:01",
    "use_api_socket": True,
    "develop": {"watch": [{"path": "/", "action": "sync", "target": "/x"}]},
    "provider": {"type": "/bin/sh"},
    "post_start": [{"command": "id", "privileged": True}],
    "profiles": ["hidden"],
    "scale": 500,
    "deploy": {"replicas": 500},
    "x-anything": {"a": 1},
}

CASES: dict[str, tuple[str, str]] = {
    **{f"the key {key}": (f"{WEB}.{key}", with_service(**{key: value})) for key, value in _FORBIDDEN_KEYS.items()},
    "include": ("include", with_top(include=["/etc/passwd"])),
    "top secrets": ("secrets", with_top(secrets={"key": {"file": "/etc/shadow"}})),
    "top configs": ("configs", with_top(configs={"hosts": {"file": "/etc/hosts"}})),
    "top extension": ("x-base", with_top(**{"x-base": {"privileged": True}})),
    "models": ("models", with_top(models={"m": {"model": "x"}})),
    "another project's name": ("name", with_top(name="telar-000000000002")),
    "no services": ("services", with_top(services={})),
    "services as a list": ("services", with_top(services=["web"])),
    "a service as a text": (f"{WEB}", with_top(services={"web": "nginx"})),
    "a name with a path in it": ("services.../up", with_top(services={"../up": ALLOWED["services"]["web"]})),
    "the engine's socket": (
        f"{WEB}.volumes[0].source",
        mount(source="/var/run/docker.sock"),
    ),
    "the host's root": (f"{WEB}.volumes[0].source", mount(source="/")),
    "another stack's code": (f"{WEB}.volumes[0].source", mount(source="/srv/telar/stacks/2/code")),
    "a way out of the code": (f"{WEB}.volumes[0].source", mount(source=f"{CODE}/../../2/code")),
    "the code elsewhere": (f"{WEB}.volumes[0].source", mount(source=CODE, target="/etc")),
    "the code, writable": (
        f"{WEB}.volumes[0].read_only",
        mount(source=CODE, target="/usr/share/nginx/html", read_only=False),
    ),
    "bind propagation": (
        f"{WEB}.volumes[0].bind.propagation",
        mount(source=CODE, target="/usr/share/nginx/html", bind={"propagation": "rshared"}),
    ),
    "a short mount": (f"{WEB}.volumes[0]", with_service(volumes=["/:/host"])),
    "a named pipe": (f"{WEB}.volumes[0].type", mount(type="npipe", source="x")),
    "an image mount": (f"{WEB}.volumes[0].type", mount(type="image", source="x")),
    "a volume with a path for a name": (
        f"{WEB}.volumes[0].source",
        with_service(volumes=[{"type": "volume", "source": "/etc", "target": "/x"}]),
    ),
    "a subpath of a volume": (
        f"{WEB}.volumes[0].volume.subpath",
        with_service(
            volumes=[{"type": "volume", "source": "data", "target": "/x", "volume": {"subpath": "../../etc"}}]
        ),
    ),
    "a bind through driver_opts": (
        "volumes.data.driver_opts",
        with_top(volumes={"data": {"driver_opts": {"type": "none", "o": "bind", "device": "/"}}}),
    ),
    "a volume driver": ("volumes.data.driver", with_top(volumes={"data": {"driver": "nfs"}})),
    "another's volume": ("volumes.data.external", with_top(volumes={"data": {"external": True}})),
    "another's volume by name": ("volumes.data.name", with_top(volumes={"data": {"name": "telar-2_data"}})),
    "another's network": ("networks.default.external", with_top(networks={"default": {"external": True}})),
    "another's network by name": ("networks.default.name", with_top(networks={"default": {"name": "telar-2"}})),
    "the host's network": ("networks.default.driver", with_top(networks={"default": {"driver": "host"}})),
    "macvlan": (
        "networks.default.driver_opts",
        with_top(networks={"default": {"driver": "macvlan", "driver_opts": {"parent": "eth0"}}}),
    ),
    "addresses of one's own": (
        "networks.default.ipam",
        with_top(networks={"default": {"ipam": {"config": [{"subnet": "10.0.0.0/8"}]}}}),
    ),
    "a fixed address": (
        f"{WEB}.networks.default.ipv4_address",
        with_service(networks={"default": {"ipv4_address": "10.0.0.1"}}),
    ),
    "a privileged port": (f"{WEB}.ports[0].published", port(published="22")),
    "a port that is not reserved": (f"{WEB}.ports[0].published", port(published="20501")),
    "a range of ports": (f"{WEB}.ports[0].published", port(published="20500-20600")),
    "a port of the engine's choice": (f"{WEB}.ports[0].published", port(published=None)),
    "a port on every address": (f"{WEB}.ports[0].host_ip", port(host_ip="0.0.0.0")),
    "a UDP port": (f"{WEB}.ports[0]", port(protocol="udp")),
    "a short port": (f"{WEB}.ports[0]", with_service(ports=["22:22"])),
    "no CPU limit": (f"{WEB}.cpus", without("cpus")),
    "no memory limit": (f"{WEB}.mem_limit", without("mem_limit")),
    "no process limit": (f"{WEB}.pids_limit", without("pids_limit")),
    "no log limit": (f"{WEB}.logging", without("logging")),
    "no image": (f"{WEB}.image", without("image")),
    "too many CPUs": (f"{WEB}.cpus", with_service(cpus=64)),
    "CPUs without a limit": (f"{WEB}.cpus", with_service(cpus=0)),
    "CPUs as not a number": (f"{WEB}.cpus", with_service(cpus=float("nan"))),
    "too much memory": (f"{WEB}.mem_limit", with_service(mem_limit="64g")),
    "unlimited swap": (f"{WEB}.memswap_limit", with_service(memswap_limit=-1)),
    "unlimited processes": (f"{WEB}.pids_limit", with_service(pids_limit=-1)),
    "endless logs": (f"{WEB}.logging.options.max-size", with_service(logging={"driver": "json-file"})),
    "logs to elsewhere": (
        f"{WEB}.logging.options.syslog-address",
        with_service(logging={"driver": "syslog", "options": {"syslog-address": "tcp://10.0.0.1"}}),
    ),
    "seccomp off": (f"{WEB}.security_opt[0]", with_service(security_opt=["seccomp:unconfined"])),
    "AppArmor off": (f"{WEB}.security_opt[0]", with_service(security_opt=["apparmor:unconfined"])),
    "new privileges": (f"{WEB}.security_opt[0]", with_service(security_opt=["no-new-privileges:false"])),
    "tmpfs without a size": (f"{WEB}.tmpfs[0]", with_service(tmpfs=["/run"])),
    "tmpfs with exec": (f"{WEB}.tmpfs[0]", with_service(tmpfs=["/run:size=8m,exec,dev,suid"])),
    "the owner's label": (f"{WEB}.labels.telar.owner", with_service(labels={"telar.owner": "someone-else"})),
    "compose's labels": (
        f"{WEB}.labels.com.docker.compose.project",
        with_service(labels={"com.docker.compose.project": "telar-2"}),
    ),
    "a variable of the host": (f"{WEB}.image", with_service(image="${CANARY}")),
    "a variable in a list": (f"{WEB}.command[1]", with_service(command=["echo", "a $CANARY b"])),
    "a variable after a dollar sign": (f"{WEB}.environment.A", with_service(environment={"A": "$$${CANARY:-x}"})),
    "an environment value of the host": (f"{WEB}.environment.CANARY", with_service(environment={"CANARY": None})),
    "an environment list": (f"{WEB}.environment", with_service(environment=["CANARY"])),
    "an image with a flag": (f"{WEB}.image", with_service(image="--privileged")),
    "a health check of the wrong kind": (f"{WEB}.healthcheck.test", with_service(healthcheck={"test": {"a": 1}})),
    "a pull policy that builds": (f"{WEB}.pull_policy", with_service(pull_policy="build")),
}

UNREADABLE: dict[str, str] = {
    "an alias": "a: &a {privileged: true}\nservices: {web: *a}\n",
    "a merge key": "services:\n  web: {<<: {privileged: true}, image: x}\n",
    "a thousand laughs": "a: &a [x,x,x]\nb: &b [*a,*a,*a]\nc: [*b,*b,*b]\n",
    "a Python object": "services: !!python/object/apply:os.system ['id']\n",
    "a compose tag": "services: {web: !reset null}\n",
    "a double key": "services: {}\nservices: {web: {privileged: true}}\n",
    "a number for a key": "services: {1: {image: x}}\n",
    "a list": "- services\n",
    "nothing": "",
    "too deep": "a: " + "[" * 50 + "]" * 50,
    "very deep": "a: " + "[" * 20_000,
    "not YAML": "services: {web: [}",
    "too large": "a: " + "x" * 70_000,
    "a NUL": "services: {web: \x00}",
}
