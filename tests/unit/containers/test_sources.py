"""What code is told to be, which references name something to clone, and how variables get into an own file."""

import pytest

from services.containers.domain.interpolation import interpolated
from services.containers.domain.sources import detect_app, is_git_ref
from services.containers.errors import ComposeRefused


@pytest.mark.parametrize(
    ("files", "package", "found"),
    [
        (["package.json"], "{}", "nodejs"),
        (["package.json"], '{"scripts": {"start": "node x"}, "dependencies": {"express": "4"}}', "nodejs"),
        (["package.json"], '{"scripts": {"build": "vite build"}, "dependencies": {"react": "19"}}', "react"),
        (["package.json"], '{"scripts": {"build": "x"}, "devDependencies": {"vite": "7"}}', "react"),
        (
            ["package.json"],
            '{"scripts": {"build": "next build"}, "dependencies": {"next": "15", "react": "19"}}',
            "nodejs",
        ),
        (["package.json"], '{"dependencies": {"react": "19"}}', "nodejs"),
        (["package.json", "index.html"], "not json", "nodejs"),
        (["package.json"], '{"scripts": "x", "dependencies": []}', "nodejs"),
        (["requirements.txt", "x.html"], "", "python"),
        (["app.py"], "", "python"),
        (["composer.json"], "", "php"),
        (["index.php", "index.html"], "", "php"),
        (["index.html"], "", "static"),
        (["README.md"], "", None),
        ([], "", None),
    ],
)
def test_the_type_of_an_app_shows_in_its_files(files: list[str], package: str, found: str | None) -> None:
    assert detect_app(files, {"package.json": package}) == found


@pytest.mark.parametrize("ref", ["main", "v1.2.3", "feature/x-1", "a" * 40, "release_2", "HEAD", "dependabot/npm@2"])
def test_branches_tags_and_commits_may_be_named(ref: str) -> None:
    assert is_git_ref(ref)


@pytest.mark.parametrize(
    "ref",
    [
        "",
        "-x",
        "--upload-pack=x",
        "a..b",
        "a b",
        "a:b",
        "+a",
        "a~1",
        "a^",
        "a\n",
        "@{1}",
        "a@{1}",
        "/a",
        "a/",
        "a.lock",
    ],
)
def test_nothing_else_may_be_named(ref: str) -> None:
    assert not is_git_ref(ref)


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("$A", "one"),
        ("${A}", "one"),
        ("x${A}y$A", "xoneyone"),
        ("${A:-two}", "one"),
        ("${EMPTY:-two}", "two"),
        ("${EMPTY-two}", ""),
        ("${NONE:-two}", "two"),
        ("${NONE-}", ""),
        ("${A:+set}", "set"),
        ("${NONE:+set}", ""),
        ("${A?must}", "one"),
        ("$$A", "$$A"),
        ("${MONEY}", "5 $$ and $$A"),
        ("plain", "plain"),
    ],
)
def test_variables_are_put_in_and_what_they_hold_is_not_read_again(text: str, filled: str) -> None:
    variables = {"A": "one", "EMPTY": "", "MONEY": "5 $ and $A"}
    assert interpolated({"a": [{"b": text}]}, variables) == {"a": [{"b": filled}]}


@pytest.mark.parametrize("text", ["$NONE", "${NONE}", "${NONE:?x}", "${EMPTY:?x}", "$", "${", "$1", "${A", "${A:-$B}"])
def test_anything_else_is_refused_by_its_path(text: str) -> None:
    with pytest.raises(ComposeRefused) as refused:
        interpolated({"services": {"web": {"command": ["x", text]}}}, {"A": "1", "EMPTY": ""})
    assert {error.pointer for error in refused.value.errors} == {"/compose/services.web.command[1]"}
