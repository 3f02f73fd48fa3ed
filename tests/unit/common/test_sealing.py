import pytest
from pydantic import SecretStr

from libs.common.sealing import Sealer

SECRET = SecretStr("a" * 32)


@pytest.mark.parametrize("other", [Sealer(SecretStr("b" * 32), "passwords"), Sealer(SECRET, "tokens")])
def test_what_is_sealed_opens_only_with_the_same_secret_for_the_same_purpose(other: Sealer) -> None:
    sealed = Sealer(SECRET, "passwords").seal("hunter2")
    assert "hunter2" not in sealed
    assert Sealer(SECRET, "passwords").open(sealed) == "hunter2"
    with pytest.raises(ValueError, match="another secret"):
        other.open(sealed)
