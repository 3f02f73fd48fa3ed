import pytest

from libs.common.errors import PreconditionFailed
from libs.common.etag import check_if_match


@pytest.mark.parametrize("given", [None, "*", '"3"', '"1", "3"', ' "3" '])
def test_the_version_that_is_there_may_be_changed(given: str | None) -> None:
    check_if_match(given, 3)


@pytest.mark.parametrize("given", ['"2"', '"33"', "3", 'W/"3"', ""])
def test_any_other_version_may_not(given: str) -> None:
    with pytest.raises(PreconditionFailed):
        check_if_match(given, 3)
