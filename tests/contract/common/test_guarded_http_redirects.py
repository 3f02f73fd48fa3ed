"""Where the guarded client lets itself be sent, and with what."""

import pytest

from libs.common.http import GuardedClient, Reason, RedirectRefused
from tests.contract.common.raw_server import QUICK, fetch, redirector


async def test_redirects_are_followed_up_to_the_limit(client: GuardedClient) -> None:
    async with redirector({"/a": "/b", "/b": "c?x", "/loop": "/loop"}).listen() as server:
        async with client.stream("GET", f"http://pics.test:{server.port}/a") as response:
            assert (response.redirects, response.url) == (2, f"http://pics.test:{server.port}/c?x")
        with pytest.raises(RedirectRefused) as looped:
            await fetch(client, server.port, "/loop")
    assert looped.value.reason is Reason.REDIRECT_LIMIT
    assert len(server.requests) == 3 + 1 + QUICK.max_redirects


async def test_credentials_stay_with_their_origin(client: GuardedClient) -> None:
    locations: dict[str, str] = {"/same": "/again"}
    async with redirector(locations).listen() as server:
        locations["/again"] = f"http://other.test:{server.port}/end"
        headers = {"Authorization": "Bearer s3cret", "X-Key": "s3cret", "Range": "bytes=0-9"}
        async with client.stream("GET", f"http://pics.test:{server.port}/same", headers=headers) as response:
            assert response.redirects == 2
    first, again, end = server.requests
    assert first.count(b"s3cret") == again.count(b"s3cret") == 2
    assert b"s3cret" not in end
    assert b"range: bytes=0-9" in end
