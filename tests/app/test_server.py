"""Who may reach the page, and by which name."""

import re
import socket

import pytest

from delta_transfer.app import server
from delta_transfer.errors import ConfigError


def test_only_this_machine_is_let_in_by_default(caplog):
    with server.listen("127.0.0.1", 0) as listener:
        assert server.is_loopback(listener)
        assert server.browser_url(listener, "127.0.0.1").startswith("http://127.0.0.1:")
        hosts = server.allowed_hosts(listener, "127.0.0.1")
    assert set(hosts) == {"localhost", "127.0.0.1", "[::1]"}
    assert caplog.text == ""


def test_others_are_let_in_with_a_warning(caplog):
    with server.listen("0.0.0.0", 0) as listener:
        hosts = server.allowed_hosts(listener, "0.0.0.0")
        assert socket.gethostname() in server.browser_url(listener, "0.0.0.0")
    assert {"localhost", "127.0.0.1", socket.gethostname()} <= set(hosts)
    assert {"*", "0.0.0.0"}.isdisjoint(hosts)
    assert "has no password" in caplog.text


def test_ipv6():
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("this machine has no IPv6")
    with server.listen("::1", 0) as listener:
        assert re.fullmatch(r"http://\[::1\]:\d+/", server.browser_url(listener, "::1"))
        assert "[::1]" in server.allowed_hosts(listener, "::1")


def test_a_port_in_use():
    with server.listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with (
            pytest.raises(ConfigError, match=f"`port={port}`: .*; use another port"),
            server.listen("127.0.0.1", port),
        ):
            pass


@pytest.mark.parametrize("host", ["no such host", "192.0.2.1"])
def test_a_host_that_is_not_this_machine(host):
    with (
        pytest.raises(ConfigError, match=f"`host={host}`: .*; use an address of this machine"),
        server.listen(host, 0),
    ):
        pass
