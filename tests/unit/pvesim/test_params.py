import pytest

from libs.pvesim.errors import PveError
from libs.pvesim.params import VMID, Param, boolean, integer, split_list, text, validate


def errors_of(schema: dict[str, Param], given: dict[str, object]) -> dict[str, str]:
    with pytest.raises(PveError) as caught:
        validate(schema, given)
    assert caught.value.status == 400
    return caught.value.errors or {}


def test_values_are_converted_and_defaults_filled_in() -> None:
    schema = {"vmid": VMID, "limit": integer(0, default=50), "full": boolean(), "name": text()}
    assert validate(schema, {"vmid": "100", "full": "1"}) == {"vmid": 100, "full": 1, "limit": 50}


def test_json_booleans_are_taken_and_words_are_not() -> None:
    assert validate({"full": boolean()}, {"full": True}) == {"full": 1}
    for word in ("yes", "on", "True", "true", "2"):
        assert errors_of({"full": boolean()}, {"full": word}) == {
            "full": f"type check ('boolean') failed - got '{word}'"
        }


@pytest.mark.parametrize("vmid", ["99", "1000000000", "-5", "0100"])
def test_ids_outside_their_range_are_malformed(vmid: str) -> None:
    assert errors_of({"vmid": VMID}, {"vmid": vmid})["vmid"].startswith("invalid format - value does not look like")


def test_repeated_keys_are_lists_only_where_the_format_is_one() -> None:
    assert validate({"delete": Param(many=True)}, {"delete": ["a", "b"]}) == {"delete": "a,b"}
    assert errors_of({"name": text()}, {"name": ["a", "b"]}) == {"name": "type check ('string') failed - got ARRAY"}


def test_a_parameter_can_require_another() -> None:
    schema = {"checksum": text(requires="algorithm"), "algorithm": text()}
    assert errors_of(schema, {"checksum": "x"}) == {"algorithm": "missing property required by 'checksum'"}


def test_list_parameters_part_at_every_separator() -> None:
    assert split_list("a,b;c d\0e,,") == ["a", "b", "c", "d", "e"]
