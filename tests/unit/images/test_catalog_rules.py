import pytest

from services.images.domain import Action, Status, require_allowed
from services.images.errors import ImageState

ALLOWED = {
    Action.CHANGE: {"queued", "uploading", "verifying", "active", "deactivated", "rejected"},
    Action.DELETE: {"queued", "uploading", "verifying", "active", "deactivated", "rejected"},
    Action.DEACTIVATE: {"active"},
    Action.ACTIVATE: {"deactivated"},
    Action.VERIFY: {"active", "deactivated"},
}


@pytest.mark.parametrize("action", list(Action))
@pytest.mark.parametrize("status", list(Status))
def test_every_action_is_allowed_in_its_statuses_and_refused_with_words_in_all_others(
    action: Action, status: Status
) -> None:
    if status in ALLOWED[action]:
        require_allowed(action, status)
        return
    with pytest.raises(ImageState) as refused:
        require_allowed(action, status)
    said, _, because = refused.value.detail.partition(": ")
    assert said == f"The image is {status} and cannot be {action}"
    assert len(because) > len("it is gone") - 1


@pytest.mark.parametrize("status", [Status.QUEUED, Status.UPLOADING])
def test_who_deactivates_an_upload_is_told_to_wait_or_delete(status: Status) -> None:
    with pytest.raises(ImageState, match="wait until it is active, or delete it"):
        require_allowed(Action.DEACTIVATE, status)
