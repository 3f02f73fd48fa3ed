import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.events import Event, MalformedEvent

AT = datetime(2026, 11, 21, 3, 9, 30, 123000, tzinfo=UTC)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(data=st.dictionaries(st.text(), JSON, max_size=4), subject=st.text(), owner=st.none() | st.text())
def test_an_event_comes_back_as_it_went(data: dict[str, object], subject: str, owner: str | None) -> None:
    event = Event("vms.vm.created.v1", subject, "/telar/vms", AT, data, owner, None, 7)
    assert Event.from_json(event.to_json()) == event


def test_the_envelope_is_a_cloudevent() -> None:
    document = json.loads(
        Event("vms.vm.created.v1", "vm-1", "/telar/vms", AT, {"a": 1}, "ada", "00-1-2-01", 3).to_json()
    )
    assert document["specversion"] == "1.0"
    assert document["time"] == "2026-11-21T03:09:30.123Z"
    assert document["datacontenttype"] == "application/json"
    assert document["owner"] == "ada"
    assert document["sequence"] == "3"
    assert document["traceparent"] == "00-1-2-01"


@pytest.mark.parametrize(
    "kind", ["vm.created", "vms.vm.created", "VMS.vm.created.v1", "vms.vm.created.v1.x", "a.b.c.vx"]
)
def test_a_type_that_is_no_routing_key_is_refused(kind: str) -> None:
    with pytest.raises(MalformedEvent):
        Event(kind, "vm-1", "/telar/vms", AT, {})


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b"null", b'"x"', b'{"specversion":"0.3"}', b"\xff\xfe", b'{"specversion":"1.0"}']
)
def test_what_is_no_event_is_told_so(body: bytes) -> None:
    with pytest.raises(MalformedEvent):
        Event.from_json(body)
