"""The fetcher's rules."""

from datetime import UTC, datetime
from typing import Any

import pytest
from bson import ObjectId

from services.fetcher.domain import filters, names, references, retries
from services.fetcher.domain.jobs import ENDED, JobState, may_become, outcome
from services.fetcher.errors import FilterRefused, NameRefused


def test_a_filter_of_plain_operators_comes_back_in_bsons_types() -> None:
    parsed = filters.parse(
        {
            "_id": {"$oid": "507f1f77bcf86cd799439011"},
            "at": {"$gte": {"$date": "2026-01-01T00:00:00Z"}, "$lt": {"$date": {"$numberLong": "1800000000000"}}},
            "$or": [{"tags": {"$all": ["a", "b"]}}, {"n": {"$not": {"$in": [1, 2]}}}],
            "rows": {"$elemMatch": {"kind": "x", "size": {"$gt": 3}}},
            "name": {"$regex": "^a", "$options": "i"},
            "plain": {"inner": 1},
            "count": {"$numberLong": "9007199254740993"},
        }
    )
    assert parsed["_id"] == ObjectId("507f1f77bcf86cd799439011")
    assert parsed["at"]["$gte"] == datetime(2026, 1, 1, tzinfo=UTC)
    assert parsed["at"]["$lt"] == datetime.fromtimestamp(1_800_000_000, UTC)
    assert parsed["count"] == 9007199254740993
    assert parsed["plain"] == {"inner": 1}
    assert parsed["$or"][1] == {"n": {"$not": {"$in": [1, 2]}}}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"$where": "sleep(1000)"}, "/filter/$where"),
    ({"a": {"$where": "1"}}, "/filter/a/$where"),
    ({"$expr": {"$function": {"body": "1", "args": [], "lang": "js"}}}, "/filter/$expr"),
    ({"$or": [{"a": 1}, {"$and": [{"$where": "1"}]}]}, "/filter/$or/1/$and/0/$where"),
    ({"a": {"$elemMatch": {"$where": "1"}}}, "/filter/a/$elemMatch/$where"),
    ({"a": {"$elemMatch": {"b": {"$function": {}}}}}, "/filter/a/$elemMatch/b/$function"),
    ({"a": {"$not": {"$where": "1"}}}, "/filter/a/$not/$where"),
    ({"a": {"$in": [{"$where": "1"}]}}, "/filter/a/$in/0/$where"),
    ({"a": {"$eq": {"b": {"$accumulator": {}}}}}, "/filter/a/$eq/b/$accumulator"),
    ({"a": {"b": {"$gt": 1}}}, "/filter/a/b/$gt"),
    ({"a": {"$gt": 1, "b": 2}}, "/filter/a/b"),
    ({"$jsonSchema": {}}, "/filter/$jsonSchema"),
    ({"$text": {"$search": "x"}}, "/filter/$text"),
    ({"$comment": "x"}, "/filter/$comment"),
    ({"$lookup": {}}, "/filter/$lookup"),
    ({"a": {"$near": {}}}, "/filter/a/$near"),
    ({"a": {"$mod": [2, 0]}}, "/filter/a/$mod"),
    ({"a.$b": 1}, "/filter/a.$b"),
    ({"a..b": 1}, "/filter/a..b"),
    ({"": 1}, "/filter/"),
    ({"a\x00": 1}, "/filter/a\x00"),
    ({"$or": {}}, "/filter/$or"),
    ({"$or": []}, "/filter/$or"),
    ({"a": {"$in": 5}}, "/filter/a/$in"),
    ({"a": {"$exists": "yes"}}, "/filter/a/$exists"),
    ({"a": {"$size": -1}}, "/filter/a/$size"),
    ({"a": {"$regex": "(" * 201}}, "/filter/a/$regex"),
    ({"a": {"$regex": {"$where": "1"}}}, "/filter/a/$regex"),
    ({"a": {"$options": "i"}}, "/filter/a/$options"),
    ({"a": {"$oid": "nothex"}}, "/filter/a"),
    ({"a": {"$oid": {"$where": "1"}}}, "/filter/a"),
    ({"a": {"$date": "yesterday"}}, "/filter/a"),
    ({"a": {"$date": {"$numberLong": "9" * 30}}}, "/filter/a"),
    ({"a": {"$date": {"$numberLong": "1" + "0" * 20}}}, "/filter/a"),
    ({"a": {"$date": "0001-01-01T00:00:00+01:00"}}, "/filter/a"),
    ({"a": {"$numberLong": "9" * 30}}, "/filter/a"),
    ({"a": 2**70}, "/filter/a"),
    ({"a": "x" * 5000}, "/filter/a"),
    (
        {"$and": [{"$and": [{"$and": [{"$and": [{"$and": [{"$and": [{"$and": [{"$and": [{}]}]}]}]}]}]}]}]},
        "/filter/$and",
    ),
    ({f"f{number}": number for number in range(600)}, "/filter/f499"),
]


@pytest.mark.parametrize(("filter_", "path"), REFUSED, ids=[str(row[0])[:60] for row in REFUSED])
def test_a_filter_that_could_run_code_or_run_long_is_refused_with_its_place(filter_: dict[str, Any], path: str) -> None:
    with pytest.raises(FilterRefused) as refused:
        filters.parse(filter_)
    assert refused.value.errors[0].pointer.startswith(path)


_NAMES = [
    *(("../x", "y"), ("a/b", "y"), ("a.b", "y"), ("", "y"), ("a" * 64, "y"), ("a\x00", "y"), ("Admin", "y")),
    *(("config", "y"), ("own", "jobs"), ("a", ".."), ("a", "../b"), ("a", "$cmd"), ("a", "system.users")),
    *(("a", "b/c"), ("a", "x\n")),
]


@pytest.mark.parametrize(("database", "collection"), _NAMES)
def test_names_that_lead_elsewhere_are_refused(database: str, collection: str) -> None:
    with pytest.raises(NameRefused):
        names.check_source(database, collection, own_database="own")


def test_plain_names_pass() -> None:
    names.check_source("shop_2", "product.images-v2", own_database="own")
    for field in ("image", "media.photos", "a b.c-d"):
        names.check_field(field)


@pytest.mark.parametrize(
    "field", ["", ".", "a.", ".a", "a..b", "$a", "a.$b", "a/b", "..", "a\x00", ".".join("abcdefghi")]
)
def test_fields_that_are_no_plain_paths_are_refused(field: str) -> None:
    with pytest.raises(NameRefused):
        names.check_field(field)


@pytest.mark.parametrize(
    ("document_id", "folder"),
    [
        ("507f1f77bcf86cd799439011", "507f1f77bcf86cd799439011-image"),
        ("../../etc/passwd", "%2E.%2F..%2Fetc%2Fpasswd-image"),
        ("..", "%2E.-image"),
        ("a/b\\c\x00", "a%2Fb%5Cc%00-image"),
        ("", "-image"),
    ],
)
def test_a_documents_folder_is_one_safe_name(document_id: str, folder: str) -> None:
    assert names.folder_name(document_id, "image") == folder


def test_no_two_documents_share_a_folder() -> None:
    pairs = [("a", "b-c"), ("a-b", "c"), ("a%2F", "c"), ("a/", "c"), ("x" * 400, "c"), ("x" * 401, "c")]
    folders = {names.folder_name(*pair) for pair in pairs}
    assert len(folders) == len(pairs)
    assert max(map(len, folders)) < 255


def test_urls_are_found_in_texts_lists_and_objects_each_once() -> None:
    document = {
        "a": [{"b": "http://x/1"}, {"b": ["HTTPS://x/2", {"url": " http://x/3 "}, {"src": {"href": "http://x/4"}}]}],
        "c": ["http://x/1", "http://x/1", "ftp://x", "no", None, 5, {"other": "http://x/9"}],
    }
    assert references.pictures_in(document, "a.b") == ["http://x/1", "HTTPS://x/2", "http://x/3", "http://x/4"]
    assert references.pictures_in(document, "c") == ["http://x/1"]
    assert references.pictures_in(document, "missing.x") == []


def test_the_first_usual_field_with_a_url_is_guessed() -> None:
    documents: list[dict[str, Any]] = [
        {"image": None, "url": "http://x/page"},
        {"photo": "http://x/p.jpg", "image": "relative.jpg"},
    ]
    assert references.guess_field(documents) == "photo"
    assert references.guess_field([{"name": "http"}]) is None


def test_domains_are_plain_hosts() -> None:
    assert references.domain_of("HTTP://User@EXAMPLE.com:81/x") == "example.com"
    assert references.domain_of("http://[::1") == "(invalid)"


def test_waits_grow_are_jittered_and_have_an_end() -> None:
    waits = [retries.delay_s("http-500", attempt, base_s=1, cap_s=60, draw=lambda: 1.0) for attempt in range(1, 9)]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    assert retries.delay_s("http-500", 3, base_s=1, cap_s=60, draw=lambda: 0.0) == 2
    assert retries.delay_s("http-429", 1, base_s=1, cap_s=60, draw=lambda: 1.0) == 4
    assert retries.delay_s("http-503", 1, base_s=1, cap_s=60, retry_after_s=30, draw=lambda: 0.0) == 30
    assert retries.delay_s("http-503", 1, base_s=1, cap_s=60, retry_after_s=9999) == 60


def test_only_what_may_pass_is_tried_again() -> None:
    assert all(map(retries.is_transient, ("http-503", "connection-lost", "decoder-crashed")))
    assert not any(map(retries.is_transient, ("http-404", "not-a-picture", "address-loopback", "body-too-large")))


def test_ended_jobs_only_run_again_or_go() -> None:
    allowed = {(a, b) for a in JobState for b in JobState if may_become(a, b)}
    assert (JobState.PENDING, JobState.RUNNING) in allowed
    assert not any((state, JobState.PENDING) in allowed for state in JobState)
    assert {b for a, b in allowed if a in ENDED} == {JobState.RUNNING, JobState.DELETED}
    assert (JobState.CANCELLED, JobState.RUNNING) not in allowed


def test_a_job_failed_only_if_nothing_came() -> None:
    assert outcome({"completed": 1, "failed": 9}) is JobState.COMPLETED
    assert outcome({"completed": 0, "failed": 9}) is JobState.FAILED
    assert outcome({}) is JobState.COMPLETED
