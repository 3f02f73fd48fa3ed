"""The compose policy gate against its corpus."""

import pytest
import yaml

from services.containers.domain.policy import Grants, read_document, require_allowed, require_known_keys, violations
from services.containers.errors import ComposeRefused
from tests.corpora.compose import refused

GRANTS = Grants(
    project=refused.PROJECT,
    publish_address="127.0.0.1",
    max_cpus=2,
    max_memory_bytes=1024**3,
    max_pids=256,
    binds=frozenset({(refused.CODE, "/usr/share/nginx/html")}),
    host_ports=frozenset({refused.HOST_PORT}),
    labels={"telar.stack": "1"},
)


def test_the_plain_file_that_all_cases_spoil_is_allowed() -> None:
    assert violations(read_document(yaml.safe_dump(refused.ALLOWED)), GRANTS) == []


def test_the_corpus_is_large_enough() -> None:
    assert len(refused.CASES) >= 80


@pytest.mark.parametrize("name", refused.CASES)
def test_a_hostile_file_is_refused_by_its_yaml_path(name: str) -> None:
    path, text = refused.CASES[name]
    with pytest.raises(ComposeRefused) as caught:
        require_allowed(read_document(text), GRANTS)
    assert path in {error.detail.partition(": ")[0] for error in caught.value.errors}
    assert f"/compose/{path}" in {error.pointer for error in caught.value.errors}


@pytest.mark.parametrize("name", refused.UNREADABLE)
def test_a_file_that_readers_may_understand_differently_is_refused(name: str) -> None:
    with pytest.raises(ComposeRefused):
        read_document(refused.UNREADABLE[name])


@pytest.mark.parametrize("key", ["env_file", "extends", "build", "provider", "label_file", "develop"])
def test_keys_that_read_host_files_are_refused_before_compose_resolves_the_file(key: str) -> None:
    with pytest.raises(ComposeRefused):
        require_known_keys({"services": {"web": {"image": "x", key: "/etc/passwd"}}})


def test_only_the_granted_labels_may_bear_the_reserved_names() -> None:
    text = refused.with_service(labels={"telar.stack": "1", "mine": "x"})
    assert violations(read_document(text), GRANTS) == []
    text = refused.with_service(labels={"telar.stack": "2"})
    assert [one.path for one in violations(read_document(text), GRANTS)] == ["services.web.labels.telar.stack"]
