"""Which certificates the guarded client takes."""

import ssl
from pathlib import Path

import pytest

from libs.common.http import ExchangeFailed, GuardedClient, Limits, OutboundError, Reason
from libs.common.testing.certificates import self_signed
from tests.contract.common.raw_server import LOOPBACK, QUICK, lookup, redirector, scripted


def certificate(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context for `name`, and a client's that trusts it."""
    public, private = self_signed(folder, name)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(public, private)
    return server, ssl.create_default_context(cafile=str(public))


async def test_tls_keeps_the_hosts_name_and_refuses_another_one(tmp_path: Path) -> None:
    server_tls, client_tls = certificate(tmp_path, "pics.test")
    locations = {"/down": "http://pics.test/"}
    async with (
        redirector(locations).listen(tls=server_tls) as server,
        GuardedClient(LOOPBACK, lookup=lookup, ssl_context=client_tls, limits=QUICK) as client,
    ):
        for _ in range(2):
            async with client.stream("GET", f"https://PICS.test.:{server.port}/") as response:
                assert response.status == 200
        assert (server.server_names, server.connections) == (["pics.test"], 1)
        for url, reason in (
            (f"https://other.test:{server.port}/", Reason.TLS_CERTIFICATE),
            (f"https://127.0.0.1:{server.port}/", Reason.TLS_CERTIFICATE),
            (f"https://pics.test:{server.port}/down", Reason.REDIRECT_DOWNGRADE),
        ):
            with pytest.raises(OutboundError) as refused:
                async with client.stream("GET", url):
                    pass
            assert refused.value.reason is reason
        assert len(server.requests) == 3


async def test_an_untrusted_certificate_and_a_plain_server_fail_in_tls(tmp_path: Path, client: GuardedClient) -> None:
    server_tls, _client_tls = certificate(tmp_path, "pics.test")
    async with redirector({}).listen(tls=server_tls) as server:
        with pytest.raises(ExchangeFailed) as untrusted:
            async with client.stream("GET", f"https://pics.test:{server.port}/"):
                pass
    assert untrusted.value.reason is Reason.TLS_CERTIFICATE
    async with scripted(b"") as plain:
        plain_port = plain.port
        with pytest.raises(OutboundError) as failed:
            async with client.stream("GET", f"https://pics.test:{plain_port}/", limits=Limits(connect_timeout_s=0.5)):
                pass
    assert failed.value.reason in {Reason.TLS_FAILED, Reason.CONNECT_TIMEOUT}
