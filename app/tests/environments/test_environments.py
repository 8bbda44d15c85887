"""The service that makes environments: what it makes, what it refuses and why, and that nothing is left of that."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from environments.requirements import Request
from environments.store import Store
from package_index import PackageIndex, wheel

APPLICATION = Path(__file__).resolve().parents[2]
_MIB = 1024 * 1024
FILES = dict(
    [
        wheel("plain"),
        wheel("plain", "2.0"),
        wheel("packed", "1.0", ("plain==1.0",), **{"packed__init.py": b"here = True\n"}),
        wheel("needy", "1.0", ("plain==1.0",)),
        wheel("trickling"),
        wheel("huge", "1.0", (), huge__data=bytes(160 * _MIB)),
        wheel("large", "1.0", (), large__data=os.urandom(20 * _MIB)),
        wheel("bulky", "1.0", (), bulky__data=os.urandom(20 * _MIB)),
        wheel("hostile_up", **{"..__..__..__..__..__..__..__escaped.txt": b"outside"}),
        wheel("hostile_absolute", **{"__tmp__escaped.txt": b"outside"}),
        wheel("hostile_scripts", **{"hostile_scripts-1.0.data__scripts__..__..__..__..__..__escaped.txt": b"outside"}),
        wheel("hostile_data", **{"hostile_data-1.0.data__data__..__..__..__..__..__escaped.txt": b"outside"}),
        wheel("hostile_scheme", **{"hostile_scheme-1.0.data__elsewhere__escaped.txt": b"outside"}),
        wheel("hostile_python", **{"hostile_python-1.0.data__scripts__python": b"#!/bin/sh\n"}),
        wheel("hostile_home", **{"hostile_home-1.0.data__data__pyvenv.cfg": b"home = /tmp\n"}),
        wheel(
            "hostile_entry",
            **{"hostile_entry-1.0.dist-info__entry_points.txt": b"[console_scripts]\n../../escaped.txt = plain:x\n"},
        ),
        wheel("hostile_link", links={"way_out": "/tmp"}, **{"way_out__escaped.txt": b"outside"}),
        wheel("odd_link", links={"passwords": "/etc/passwd"}),
        wheel("odd_record", record="../../../../../../../../etc/hostname,,\nabsent.py,,\n"),
        ("source_only-1.0.tar.gz", b"no archive"),
    ]
)


class Service:
    """A running service."""

    def __init__(self, directory: Path, index: str, **variables: str) -> None:
        self.volume = directory / "volume"
        self.volume.mkdir(exist_ok=True)
        (directory / "wheels").mkdir(exist_ok=True)
        (directory / "network").write_text(f"UV_DEFAULT_INDEX={index}\nUV_INDEX=\n")
        self.log = directory / "log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(APPLICATION),
            "ENVIRONMENTS_DIRECTORY": str(self.volume),
            "ENVIRONMENTS_WHEELS": str(directory / "wheels"),
            "ENVIRONMENTS_NETWORK": str(directory / "network"),
            "ENVIRONMENTS_PYTHON": sys.executable,
            "ENVIRONMENTS_HOST": "127.0.0.1",
            "ENVIRONMENTS_PORT": str(self._port),
            **variables,
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "environments"], env=environment, stderr=log, stdout=log
            )
        self.wait(self._is_alive, "alive")

    def _is_alive(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/health", timeout=5):
                return True
        except OSError:
            return False

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 120
        while not condition():
            assert self.process.poll() is None, f"{what}:\n{self.log.read_text()}"
            assert time.monotonic() < deadline, f"{what}:\n{self.log.read_text()}"
            time.sleep(0.1)

    def post(self, path: str, body: Any) -> tuple[int, dict[str, Any]]:
        url = f"http://127.0.0.1:{self._port}{path}"
        try:
            with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def ask(self, *requirements: str, needs: tuple[str, ...] = ()) -> dict[str, Any]:
        """The last answer to a request, once nothing is under way."""
        last: dict[str, Any] = {}

        def ended() -> bool:
            nonlocal last
            _, last = self.post("/environments", {"requirements": requirements, "with": needs})
            return last["state"] != "installing"

        self.wait(ended, "an answer")
        return last

    def left(self) -> set[str]:
        """What is on the volume, but for the cache that is shared, and its size is bounded."""
        return {path.name for path in self.volume.iterdir() if path.name not in (".cache", ".answers")} | {
            path.name for path in (self.volume / ".making").iterdir()
        }

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture
def index() -> Iterator[PackageIndex]:
    server = PackageIndex(dict(FILES))
    yield server
    server.close()


@pytest.fixture
def start(tmp_path: Path, index: PackageIndex) -> Iterator[Callable[..., Service]]:
    started: list[Service] = []

    def _start(url: str = "", **variables: str) -> Service:
        started.append(Service(tmp_path, url or index.url, **variables))
        return started[-1]

    yield _start
    for service in started:
        service.stop()


def test_an_environment_has_what_was_asked_for(start: Callable[..., Service]) -> None:
    service = start()
    made = service.ask("needy", needs=("plain>=1",))
    assert made["state"] == "ready", made
    assert made["lock"] == ["needy==1.0", "plain==1.0"], "the range of a need fits around the requirements"
    python = service.volume / made["environment"] / "bin" / "python"
    program = "import needy, importlib.metadata as m; print(m.version('plain'))"
    assert subprocess.check_output([python, "-c", program], text=True).strip() == "1.0"


def test_what_is_compiled_once_is_compiled_in_later_environments_too(start: Callable[..., Service]) -> None:
    service = start()

    def bytecode(environment: str) -> list[Path]:
        return [*(service.volume / environment / "lib").glob("python*/site-packages/__pycache__/plain.*.pyc")]

    first = service.ask("needy")["environment"]
    service.wait(lambda: bool(bytecode(first)), "it is compiled after it was asked for")
    second = service.ask("packed")["environment"]
    assert first != second
    assert bytecode(second)[0].samefile(bytecode(first)[0])


def test_the_packages_of_the_model_itself_are_compiled_first(start: Callable[..., Service]) -> None:
    service = start()
    made = service.ask("packed", "plain", needs=("plain>=1",))["environment"]
    request = Request.parse({"requirements": ["Packed==1.0", "plain"], "with": ["plain>=1"]})
    found = Store(service.volume).packages(made, request.own())
    assert [path.name for path in found] == ["packed"]


def test_the_same_lock_is_the_same_environment_and_a_known_request_needs_no_index(
    start: Callable[..., Service], index: PackageIndex
) -> None:
    service = start()
    first, second = service.ask("needy"), service.ask("needy==1.0", "plain==1.0")
    assert first["environment"] == second["environment"]
    service.stop()
    again = start()
    index.asked.clear()
    assert again.ask("needy") == first
    assert index.asked == []


def test_wheels_that_were_brought_need_no_index(start: Callable[..., Service], tmp_path: Path) -> None:
    service = start("http://127.0.0.1:9/simple")
    for name in ("needy-1.0-py3-none-any.whl", "plain-1.0-py3-none-any.whl"):
        (tmp_path / "wheels" / name).write_bytes(FILES[name])
    assert service.ask("needy")["state"] == "ready"


REFUSED = {
    "no such package": (["absent==1"], "version", "absent"),
    "no such version": (["plain==9.9"], "version", "plain==9.9"),
    "no wheel": (["source_only==1.0"], "wheel", "source-only"),
    "a conflict of its own": (["needy", "plain==2.0"], "conflict", "do not go together"),
    "an option": (["--index-url=http://127.0.0.1/simple"], "requirement", "--index-url"),
    "an editable": (["-e ."], "requirement", "-e"),
    "a file of others": (["-r /etc/passwd"], "requirement", "-r"),
    "an address": (["plain @ http://127.0.0.1/plain.whl"], "requirement", "address"),
    "a file's address": (["plain @ file:///tmp/plain.whl"], "requirement", "address"),
    "a repository": (["git+https://127.0.0.1/x.git"], "requirement", "address"),
    "a path": (["./plain-1.0-py3-none-any.whl"], "requirement", "path"),
    "no requirement": (["plain=1.0"], "requirement", "plain=1.0"),
    "unprintable characters": (["plain\x00"], "requirement", "unprintable"),
    "a very long line": (["p" * 10_000], "requirement", "longer than"),
    "a wheel with a path that goes up": (["hostile-up"], "wheel", "leads out of the environment: '../"),
    "a wheel with an absolute path": (["hostile-absolute"], "wheel", "leads out of the environment: '/tmp/escaped"),
    "a wheel with a script elsewhere": (["hostile-scripts"], "wheel", "leads out of the environment: 'hostile_scripts"),
    "a wheel with data elsewhere": (["hostile-data"], "wheel", "leads out of the environment: 'hostile_data"),
    "a wheel with a scheme of its own": (["hostile-scheme"], "wheel", "elsewhere"),
    "a wheel with another Python": (["hostile-python"], "wheel", "reserved name"),
    "a wheel that leads Python elsewhere": (["hostile-home"], "wheel", "pyvenv.cfg"),
    "a wheel with a program elsewhere": (["hostile-entry"], "wheel", "within the scripts directory"),
    "a wheel that writes through a link": (["hostile-link"], "wheel", "hostile-link"),
    "a wheel that comes for ever": (["trickling"], "time", "environments_timeout"),
    "a wheel that unpacks to too much": (["huge"], "quota", "environments_quota"),
}


@pytest.mark.parametrize(("requirements", "kind", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_made_is_refused_and_leaves_nothing(
    start: Callable[..., Service], tmp_path: Path, requirements: list[str], kind: str, reason: str
) -> None:
    limits = {"ENVIRONMENTS_QUOTA_BYTES": str(60 * _MIB), "ENVIRONMENTS_TIMEOUT_SECONDS": "8"}
    service = start(**(limits if kind in ("time", "quota") else {}))
    answer = service.ask(*requirements)
    assert (answer["state"], answer["kind"]) == ("refused", kind), answer
    assert reason in answer["reason"]
    assert "hidden-word" not in service.log.read_text() + answer["reason"]
    assert service.left() == {".making"}
    assert not list(tmp_path.glob("**/escaped.txt"))
    assert not Path("/escaped.txt").exists()
    assert not Path("/tmp/escaped.txt").exists()
    # Another line, so no answer that is kept for a while.
    again = service.ask(*requirements, "plain>=1.0")
    assert (again["state"], again["kind"]) == ("refused", kind), "nor does it pass the second time"
    used = subprocess.check_output(["du", "--summarize", "--block-size=1", str(service.volume)], text=True)
    assert int(used.split()[0]) < 60 * _MIB
    assert service.ask("plain==1.0")["state"] == "ready", "and it goes on"


def test_what_a_wheel_says_of_others_files_is_not_followed(start: Callable[..., Service]) -> None:
    service = start()
    made = service.ask("odd-link", "odd-record")
    assert made["state"] == "ready", made
    packages = next((service.volume / made["environment"] / "lib").glob("python*/site-packages"))
    assert not (packages / "passwords").is_symlink(), "a link is a file with the words of where it leads"
    assert (packages / "passwords").read_text() == "/etc/passwd"
    assert not (packages / "absent.py").exists()


def test_a_conflict_with_the_caller_names_both_sides(start: Callable[..., Service]) -> None:
    answer = start().ask("plain==1.0", needs=("plain>=2",))
    assert answer["kind"] == "conflict"
    assert "plain==1.0" in answer["reason"]
    assert "plain>=2" in answer["reason"]


def test_an_index_that_does_not_answer_is_told_from_a_refusal(
    start: Callable[..., Service], index: PackageIndex
) -> None:
    service = start()
    index.broken = True
    answer = service.ask("plain==1.0")
    assert answer["state"] == "unreachable"
    assert "hidden-word" not in service.log.read_text() + answer["reason"]
    index.broken = False
    service.wait(lambda: service.ask("plain==1.0")["state"] == "ready", "it is tried again")


def test_the_least_recently_used_makes_way_and_what_is_in_use_does_not(start: Callable[..., Service]) -> None:
    service = start(ENVIRONMENTS_QUOTA_BYTES=str(60 * _MIB))
    large = service.ask("large")["environment"]
    refused = service.ask("bulky", "large")
    assert refused["state"] == "ready", "both fit, for they share the files"
    long_ago = time.time() - 3600
    for digest in (large, refused["environment"]):
        os.utime(service.volume / digest, (long_ago, long_ago))
    assert service.post(f"/environments/{large}/use", {})[0] == 200
    more = wheel("more", "1.0", (), more__data=os.urandom(30 * _MIB))
    (service.log.parent / "wheels" / more[0]).write_bytes(more[1])
    assert service.ask("more")["state"] == "ready"
    assert service.post(f"/environments/{large}/use", {})[0] == 200
    assert service.post(f"/environments/{refused['environment']}/use", {})[0] == 404


def test_what_was_under_way_when_it_died_is_gone(start: Callable[..., Service]) -> None:
    service = start()
    service.post("/environments", {"requirements": ["trickling"]})
    service.wait((service.volume / ".making" / "environment").exists, "it is being made")
    service.process.kill()
    service.process.wait()
    assert start().left() == {".making"}
