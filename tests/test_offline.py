"""No test reaches beyond this machine, in subprocesses neither, and no default configuration names a place outside."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(ROOT.glob("configs/**/*.yaml"))


def scalars(node: object):
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else None
    if children is None:
        yield node
    for child in children or ():
        yield from scalars(child)


HOUSE = ("runs/", "configs/", "data/", "packages/", "shared/", "projects/", "./", "../", "/")
LOGGED = ("train/", "val/", "test/", "perf/", "optim/")  # names of metrics


def remote(text: str) -> bool:
    """Whether a config value names a place outside: a URL, or `owner/name` as hubs write it."""
    local = text.startswith((*HOUSE, *LOGGED))
    return "://" in text or (not local and re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", text) is not None)


def test_no_default_config_names_a_remote_source():
    """An overlay is asked for by name, and may."""
    texts = {str(path.relative_to(ROOT)): path.read_text() for path in CONFIGS}
    default = {name: text for name, text in texts.items() if not text.startswith("# overlay")}
    assert {"configs/text/base.yaml", "configs/arc/nano.yaml", "configs/hardware/cpu.yaml"} <= default.keys()
    named = [(name, each) for name, text in default.items() for each in scalars(yaml.safe_load(text))]
    assert [(name, each) for name, each in named if isinstance(each, str) and remote(each)] == []


@pytest.mark.parametrize(
    ("text", "outside"),
    [
        ("https://a.b/c", True),
        ("owner/name-1.0", True),
        ("runs/arc", False),
        ("val/loss", False),
        ("shared.sampling", False),
        ("a b/c", False),
    ],
)
def test_a_remote_source_is_seen(text, outside):
    assert remote(text) == outside


OUTSIDE = "192.0.2.1"  # set aside for documentation (RFC 5737): nobody is there
REACH = {
    "connect": f"socket.socket().connect(('{OUTSIDE}', 80))",
    "connect_ex": f"socket.socket().connect_ex(('{OUTSIDE}', 80))",
    "udp": f"socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'', ('{OUTSIDE}', 53))",
    "ipv6": "socket.socket(socket.AF_INET6).connect(('2001:db8::1', 80))",
    "name": "socket.getaddrinfo('example.org', 80)",
    "request": "urllib.request.urlopen('http://example.org')",
}


@pytest.mark.parametrize("how", REACH)
def test_reaching_beyond_this_machine_raises(how):
    with pytest.raises(RuntimeError, match="tests use no network"):
        exec("import socket, urllib.request\n" + REACH[how])


def test_reaching_beyond_this_machine_raises_in_subprocesses():
    done = subprocess.run([sys.executable, "-c", "import socket\n" + REACH["connect"]], capture_output=True, text=True)
    assert done.returncode == 1 and "tests use no network" in done.stderr


def test_loopback_and_unix_sockets_pass(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        client.sendall(b"x")
        assert server.accept()[0].recv(1) == b"x"
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(tmp_path / "s"))
        server.listen()
        client.connect(str(tmp_path / "s"))
