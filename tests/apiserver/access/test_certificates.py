"""TLS on every address, and certificates that change while the server runs."""

from __future__ import annotations

import asyncio
import socket
import ssl
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace

import httpx
import psutil
import pytest
from cryptography import x509

from swarmtask.apiserver import auth
from swarmtask.apiserver.certificates import GLANCE_S, LOOK_S, CertificateKeeper
from swarmtask.apiserver.issued import FILES, NOTE, Issue, issue_beside, issue_here, stands
from swarmtask.apiserver.issuing import KEPT_NAMES
from swarmtask.clock import ManualClock
from tests.apiserver.server import http_client, running_api_server, tls
from tests.apiserver.waiting import until


async def presented(url: str) -> x509.Certificate:
    """The certificate that the server shows to a new connection."""
    host, _, port = url.removeprefix("https://").rpartition(":")
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection(host, int(port), ssl=trusting)
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    await writer.wait_closed()
    return x509.load_der_x509_certificate(shown)


def names_in(path: Path) -> set[str]:
    """The addresses and names that a certificate stands for."""
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    return {str(name.value) for name in certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value}


async def test_a_new_certificate_is_served_without_a_restart(tmp_path: Path) -> None:
    clock = ManualClock()
    async with running_api_server(tmp_path, clock=clock) as server:
        first = await presented(server.url)
        clock.advance(timedelta(days=310).total_seconds())
        async with asyncio.timeout(20):
            while (second := await presented(server.url)).serial_number == first.serial_number:
                clock.advance(LOOK_S)
                await asyncio.sleep(0.02)
        assert second.not_valid_after_utc > first.not_valid_after_utc
        assert second.issuer == first.issuer


async def test_open_connections_go_on_and_removed_files_are_made_anew(tmp_path: Path) -> None:
    clock = ManualClock()
    async with running_api_server(tmp_path, clock=clock) as server:
        first = await presented(server.url)
        async with http_client(server) as held:
            assert (await held.get("/api")).status_code == 200
            for path in (server.kubeconfig.parent / "pki").glob("server.*"):
                path.unlink()
            async with asyncio.timeout(20):
                while (await presented(server.url)).serial_number == first.serial_number:
                    clock.advance(LOOK_S)
                    await asyncio.sleep(0.02)
            assert (await held.get("/api")).status_code == 200


async def test_files_that_cannot_be_used_leave_the_present_certificate(tmp_path: Path) -> None:
    clock = ManualClock()
    credentials, _ = auth.prepare(tmp_path, "127.0.0.1", clock.now())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(credentials.certificate, credentials.key)
    keeper = CertificateKeeper(context, tmp_path, "127.0.0.1", clock)
    assert await keeper.look() is False
    good = credentials.key.read_bytes()
    other, _ = auth.prepare(tmp_path / "other", "127.0.0.1", clock.now())
    credentials.key.write_bytes(other.key.read_bytes())
    with pytest.raises(ssl.SSLError):
        await keeper.look()
    credentials.key.write_bytes(good)
    assert await keeper.look() is False


class TestAServerOnAllAddresses:
    @pytest.fixture
    def addresses(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Of the machine's interfaces; its own name stands for a loopback address, as Debian sets it up."""
        listed = ["127.0.0.1", "::1", "192.0.2.7", "2001:db8::7", "fe80::1%eth0"]

        def interfaces() -> dict[str, list[SimpleNamespace]]:
            families = {4: socket.AF_INET, 6: socket.AF_INET6}
            of_ip = [SimpleNamespace(family=families[ip_address(text.partition("%")[0]).version], address=text) for text in listed]
            return {"eth0": [*of_ip, SimpleNamespace(family=psutil.AF_LINK, address="02:fc:00:00:00:01")], "veth0": []}

        monkeypatch.setattr(psutil, "net_if_addrs", interfaces)
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", 0))])
        return listed

    @pytest.mark.parametrize("host", ["0.0.0.0", "::"])
    def test_the_certificate_stands_for_those_of_all_interfaces(self, addresses: list[str], host: str) -> None:
        names = auth.subject_names(host)
        assert {"127.0.0.1", "::1", "192.0.2.7", "2001:db8::7", "127.0.1.1", "localhost", "swarmtask"} <= set(names)
        assert not [name for name in names if name.startswith("fe80")]
        assert "192.0.2.7" not in auth.subject_names("127.0.0.1")

    async def test_it_is_made_anew_when_they_change(self, tmp_path: Path, addresses: list[str]) -> None:
        clock = ManualClock()
        credentials, _ = auth.prepare(tmp_path, "0.0.0.0", clock.now())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        keeper = CertificateKeeper(context, tmp_path, "0.0.0.0", clock)
        assert await keeper.look() is False
        addresses.append("198.51.100.9")
        assert await keeper.look() is True
        certificate = x509.load_pem_x509_certificate(credentials.certificate.read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert ip_address("198.51.100.9") in names.get_values_for_type(x509.IPAddress)
        assert await keeper.look() is False

    async def test_addresses_that_go_for_a_while_stay_in_it(self, tmp_path: Path, addresses: list[str]) -> None:
        clock = ManualClock()
        credentials, _ = auth.prepare(tmp_path, "0.0.0.0", clock.now())
        keeper = CertificateKeeper(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), tmp_path, "0.0.0.0", clock)
        addresses.remove("192.0.2.7")
        assert await keeper.look() is False
        addresses.append("198.51.100.9")  # another network comes while that one is away
        assert await keeper.look() is True
        assert {"192.0.2.7", "198.51.100.9"} <= names_in(credentials.certificate)
        addresses.append("192.0.2.7")
        assert await keeper.look() is False
        clock.advance(timedelta(days=310).total_seconds())
        addresses.remove("192.0.2.7")
        assert await keeper.look() is True
        assert "192.0.2.7" in names_in(credentials.certificate)

    @pytest.mark.slow
    def test_those_of_long_ago_make_room(self, tmp_path: Path, addresses: list[str]) -> None:
        now = ManualClock().now()
        for number in range(100):
            addresses[2] = f"192.0.2.{number}"
            credentials, _ = auth.prepare(tmp_path, "0.0.0.0", now)
        found = names_in(credentials.certificate)
        assert {f"192.0.2.{number}" for number in range(100 - KEPT_NAMES, 100)} <= found
        assert len(found) == len(set(auth.subject_names("0.0.0.0"))) + KEPT_NAMES

    async def test_a_new_one_is_seen_within_seconds(self, tmp_path: Path, addresses: list[str]) -> None:
        del addresses[2:]  # started before the network

        class Passing(ManualClock):
            async def sleep(self, delay_s: float) -> None:
                self.advance(delay_s)
                if self.monotonic() >= 2 * GLANCE_S and "192.0.2.7" not in addresses:
                    addresses.append("192.0.2.7")
                await asyncio.sleep(0)

        clock = Passing()
        start = clock.now()
        credentials, _ = auth.prepare(tmp_path, "0.0.0.0", start)
        keeping = asyncio.create_task(CertificateKeeper(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), tmp_path, "0.0.0.0", clock).run())

        async def renewed() -> bool:
            return "192.0.2.7" in names_in(credentials.certificate)

        await until(renewed, what="a certificate with the new address")
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        made = x509.load_pem_x509_certificate(credentials.certificate.read_bytes()).not_valid_before_utc + timedelta(hours=1)
        assert made - start == timedelta(seconds=2 * GLANCE_S)


class TestWhatWasIssued:
    NAMES = ("localhost", "127.0.0.1")

    @pytest.mark.parametrize("issue", [issue_here, issue_beside])
    def test_it_stands_for_its_names_until_it_has_to_be_renewed(self, tmp_path: Path, issue: Issue) -> None:
        now = ManualClock().now()
        assert not stands(tmp_path, self.NAMES, now)
        issue(tmp_path, self.NAMES, now)
        assert stands(tmp_path, self.NAMES[::-1], now)
        assert stands(tmp_path, self.NAMES[:1], now)
        assert not stands(tmp_path, (*self.NAMES, "elsewhere"), now)
        assert stands(tmp_path, self.NAMES, now + timedelta(days=300))
        assert not stands(tmp_path, self.NAMES, now + timedelta(days=306))

    @pytest.mark.parametrize("name", FILES)
    def test_not_with_a_file_changed_or_gone(self, tmp_path: Path, name: str) -> None:
        now = ManualClock().now()
        issue_here(tmp_path, self.NAMES, now)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content + b"\n")
        assert not stands(tmp_path, self.NAMES, now)
        (tmp_path / name).unlink()
        assert not stands(tmp_path, self.NAMES, now)
        (tmp_path / name).write_bytes(content)
        assert stands(tmp_path, self.NAMES, now)

    @pytest.mark.parametrize("noted", [b"", b"{}", b"[]", b"null", b'{"renew": 3}', b'{"renew": "2999-01-01T00:00:00+00:00"}'])
    def test_not_with_a_note_that_says_nothing(self, tmp_path: Path, noted: bytes) -> None:
        now = ManualClock().now()
        issue_here(tmp_path, self.NAMES, now)
        (tmp_path / NOTE).write_bytes(noted)
        assert not stands(tmp_path, self.NAMES, now)

    @pytest.mark.parametrize("issue", [issue_here, issue_beside])
    def test_what_cannot_be_used_is_named(self, tmp_path: Path, issue: Issue) -> None:
        now = ManualClock().now()
        issue_here(tmp_path, self.NAMES, now)
        (tmp_path / "accounts.key").write_text("nonsense")
        with pytest.raises(ValueError, match=r"accounts\.key holds no signing key"):
            issue(tmp_path, self.NAMES, now)


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
async def test_no_address_without_tls_and_without_a_token(tmp_path: Path, host: str) -> None:
    async with running_api_server(tmp_path, host=host) as server:
        async with http_client(server) as api:
            assert (await api.get("/api")).status_code == 200
        async with httpx.AsyncClient(verify=tls(server)) as anybody:
            assert (await anybody.get(f"{server.url}/api")).status_code == 401
            with pytest.raises(httpx.HTTPError):
                await anybody.get(f"http://{server.url.removeprefix('https://')}/healthz")
