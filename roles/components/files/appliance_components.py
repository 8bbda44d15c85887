#!/usr/bin/python3
# Copyright the mlops-appliance authors. SPDX-License-Identifier: Apache-2.0
"""List what an appliance's images are made of, and look for holes that are known of it.

`list` reads the image itself, wherever it came from, and leaves a CycloneDX list of it on the host. `check` asks the
advisories about what is listed: debsecan about Debian's packages, pip-audit about Python distributions. What it could
not ask about is said to be unknown, in its log, in metrics and in the status.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.error
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, quote, unquote, urlsplit

DOCKER = "docker"
SYSTEMCTL = "systemctl"
SPECIFICATION = "1.6"
DPKG_FIELDS = ("Package", "Version", "Architecture", "source:Package", "source:Version", "db:Status-Status")
# What is read of an image whose file system cannot be mounted.
PYTHON_METADATA = ("METADATA", "PKG-INFO")
PYTHON_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
PYTHON_VERSION = re.compile(r"[A-Za-z0-9.!+_-]+")
READ_FILES = (
    *("etc/os-release", "usr/lib/os-release", "var/lib/dpkg/status"),
    *(f"*-packages/*-info/{name}" for name in PYTHON_METADATA),
)
# Debian's own, which are in the list as its packages.
DEBIAN_PYTHON = "usr/lib/python3/dist-packages"
SOURCES = ("debian", "python")
SEVERITIES = ("critical", "high", "medium", "low", "unknown")
TIMEOUT = 60
REASON_LENGTH = 160

Component = dict[str, Any]
Hole = dict[str, str]
Checked = TypeVar("Checked")


class ComponentsError(Exception):
    """What was asked for cannot be done; the message says why."""


class NotCheckedError(Exception):
    """Nobody can tell which holes are known; the message says why."""


# -- the list of an image ---------------------------------------------------------------------------------------------


def run(*command: str | Path) -> str:
    """What a program prints.

    Raises:
        ComponentsError: it failed.
    """
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if result.returncode != 0:
        words = " ".join(map(str, command))
        raise ComponentsError(f"`{words}` failed: {result.stderr.decode(errors='replace').strip()}")
    return result.stdout.decode(errors="replace")


@contextmanager
def opened(image: Mapping[str, Any]) -> Iterator[Path]:
    """The file system of an image, or what is read of it.

    Args:
        image: the image as ``docker inspect`` tells of it.
    """
    with tempfile.TemporaryDirectory(prefix="mlops-components-", dir="/var/tmp") as place:
        data = (image.get("GraphDriver") or {}).get("Data") or {}
        # The topmost layer first. A single one is what the mount would show.
        layers = [data[name] for name in ("UpperDir", "LowerDir") if data.get(name)]
        if layers and "LowerDir" not in data:
            yield Path(layers[0])
            return
        mounted = layers and _mount(layers, place)
        if not mounted:
            _export(str(image["Id"]), place)
        try:
            yield Path(place)
        finally:
            if mounted:
                run("umount", place)


def _mount(layers: Sequence[str], place: str) -> bool:
    # The newer interface of the kernel takes no more than 256 characters of layers.
    environment = {**os.environ, "LIBMOUNT_FORCE_MOUNT2": "always"}
    command = ["mount", "-t", "overlay", "overlay", "-o", f"ro,lowerdir={':'.join(layers)}", place]
    result = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return result.returncode == 0


def _export(image: str, place: str) -> None:
    """Unpack the files of an image that are read. It takes seconds, for want of its layers as directories."""
    # The command is never run; an image may have none.
    container = run(DOCKER, "create", "--network=none", image, "none").strip()
    try:
        with subprocess.Popen([DOCKER, "export", container], stdout=subprocess.PIPE) as export:
            # That a pattern has no match is no failure.
            unpack = ["tar", "--extract", "--no-same-owner", f"--directory={place}", "--wildcards", *READ_FILES]
            subprocess.run(unpack, stdin=export.stdout, stderr=subprocess.DEVNULL, check=False)
        if export.returncode != 0:
            raise ComponentsError(f"`docker export` of {image} failed.")
    finally:
        run(DOCKER, "rm", container)


def is_own_file(root: Path, path: Path) -> bool:
    """Whether a path is a file of the image: not by a link one of the host's, nor a pipe that would never end.

    Args:
        root: the image's file system.
        path: a path in it.
    """
    return path.is_file() and path.resolve().is_relative_to(root.resolve())


def operating_system(root: Path) -> dict[str, str]:
    """The fields of an image's ``os-release``; empty without one."""
    for name in ("etc/os-release", "usr/lib/os-release"):
        path = root / name
        if is_own_file(root, path):
            text = path.read_text(encoding="utf-8", errors="replace")
            lines = (line.split("=", 1) for line in text.splitlines() if "=" in line)
            return {key: value.strip("\"'") for key, value in lines}
    return {}


def debian_packages(root: Path, system: Mapping[str, str]) -> list[Component]:
    """The packages that dpkg has installed in an image.

    Raises:
        ComponentsError: dpkg cannot read its own records.
    """
    status = root / "var/lib/dpkg/status"
    if not is_own_file(root, status):
        return []
    with tempfile.TemporaryDirectory() as place:
        shutil.copy(status, place)
        Path(place, "updates").mkdir()
        fields = "\\t".join(f"${{{field}}}" for field in DPKG_FIELDS)
        listed = run("dpkg-query", f"--admindir={place}", "--show", f"--showformat={fields}\\n")
    distribution = system.get("ID", "debian")
    release = "-".join(filter(None, (distribution, system.get("VERSION_ID"))))
    components = []
    for line in listed.splitlines():
        name, version, architecture, source, source_version, state = line.split("\t")
        if state != "installed":
            continue
        # https://github.com/package-url/purl-spec: the source package, of which advisories speak, is `upstream`.
        qualifiers = {"arch": architecture, "distro": release, "upstream": f"{source}@{source_version}"}
        told = "&".join(f"{key}={quote(value, safe=':')}" for key, value in qualifiers.items())
        purl = f"pkg:deb/{quote(distribution)}/{quote(name, safe='')}@{quote(version, safe=':')}?{told}"
        components.append({"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl})
    return components


def python_distributions(root: Path) -> list[Component]:
    """The Python distributions in an image, in whatever environment they are, without those that Debian packaged."""
    components: dict[str, Component] = {}
    for directory, below, _ in os.walk(root):
        if os.path.basename(directory) not in {"site-packages", "dist-packages"}:  # noqa: PTH119
            continue
        below.clear()
        if str(Path(directory).relative_to(root)) == DEBIAN_PYTHON:
            continue
        for described in sorted(Path(directory).glob("*-info")):
            files = [path for path in map(described.joinpath, PYTHON_METADATA) if os.path.lexists(path)]
            if not files or not all(is_own_file(root, path) for path in files):
                continue
            metadata = importlib.metadata.Distribution.at(described).metadata
            name, version = metadata["Name"] or "", metadata["Version"] or ""
            # What is none would be a line of its own for pip-audit, such as one that names a file of the host.
            if not PYTHON_NAME.fullmatch(name) or not PYTHON_VERSION.fullmatch(version):
                continue
            # https://packaging.python.org/en/latest/specifications/name-normalization/
            normal = re.sub(r"[-_.]+", "-", name).lower()
            purl = f"pkg:pypi/{quote(normal)}@{quote(version, safe='')}"
            components[purl] = {
                "type": "library",
                "bom-ref": purl,
                "name": normal,
                "version": version,
                "purl": purl,
                **_licences(metadata),
            }
    return [components[purl] for purl in sorted(components)]


def _licences(metadata: Any) -> dict[str, Any]:
    if expression := metadata.get("License-Expression"):
        return {"licenses": [{"expression": expression}]}
    names = [
        classifier.rpartition(" :: ")[2]
        for classifier in metadata.get_all("Classifier") or ()
        if classifier.startswith("License :: ") and classifier != "License :: OSI Approved"
    ]
    text = (metadata.get("License") or "").strip()
    # Some have the whole text there.
    if not names and text and "\n" not in text and text.upper() != "UNKNOWN":
        names = [text]
    return {"licenses": [{"license": {"name": name}} for name in dict.fromkeys(names)]} if names else {}


def component_list(service: str, reference: str, image: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """The CycloneDX list of an image.

    Args:
        service: the service that the image is for.
        reference: the name by which the service's unit has the image.
        image: the image as ``docker inspect`` tells of it.
        root: the image's file system.

    Raises:
        ComponentsError: the image cannot be read.
    """
    system = operating_system(root)
    components = [*debian_packages(root, system), *python_distributions(root)]
    if system:
        base = {"type": "operating-system", "bom-ref": "os", "name": system.get("ID", "unknown")}
        version = {"version": system["VERSION_ID"]} if "VERSION_ID" in system else {}
        suite = [{"name": "mlops:suite", "value": system.get("VERSION_CODENAME", "")}]
        components.insert(0, {**base, **version, "properties": suite})
    # Some builders tell no time, and the engine then has none.
    told = {"service": service, "reference": reference, "id": image["Id"], "built": image.get("Created", "")}
    return {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPECIFICATION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPECIFICATION,
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, image['Id'])}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": {
                "type": "container",
                "bom-ref": "image",
                "name": reference,
                "properties": [{"name": f"mlops:image:{key}", "value": value} for key, value in told.items()],
            },
        },
        "components": components,
    }


def told_of(document: Mapping[str, Any]) -> dict[str, str]:
    """What a list says of its image: ``service``, ``reference``, ``id`` and ``built``."""
    properties = document["metadata"]["component"]["properties"]
    return {item["name"].rpartition(":")[2]: item["value"] for item in properties}


def of_kind(document: Mapping[str, Any], kind: str) -> list[Component]:
    """The components of a list whose purl is of a kind, ``deb`` or ``pypi``."""
    return [item for item in document["components"] if item.get("purl", "").startswith(f"pkg:{kind}/")]


# -- known holes ------------------------------------------------------------------------------------------------------


def suite_of(document: Mapping[str, Any]) -> str:
    """The Debian suite of an image.

    Raises:
        NotCheckedError: debsecan has nothing about the image.
    """
    system = next((item for item in document["components"] if item["type"] == "operating-system"), None)
    if system is None or system["name"] != "debian" or not of_kind(document, "deb"):
        name = system["name"] if system else "no system that is known"
        raise NotCheckedError(f"debsecan knows of Debian, and this image has {name}")
    return str(system["properties"][0]["value"])


def dpkg_status(components: Iterable[Component]) -> str:
    """Debian packages of a list as dpkg itself records them, for debsecan."""
    blocks = []
    for item in components:
        source, version = parse_qs(urlsplit(item["purl"]).query)["upstream"][0].split("@", 1)
        told = {"Package": item["name"], "Status": "install ok installed", "Version": item["version"]}
        blocks.append(
            "".join(f"{key}: {value}\n" for key, value in (told | {"Source": f"{source} ({version})"}).items())
        )
    return "\n".join(blocks)


def debian_holes(said: str) -> list[Hole]:
    """Holes that debsecan printed, one a line: ``CVE-2025-1 curl (fixed, remotely exploitable, high urgency)``."""
    holes: dict[tuple[str, str, str], Hole] = {}
    for match in re.finditer(r"^(\S+) (\S+)(?: \((.*)\))?$", said, re.MULTILINE):
        notes = (match[3] or "").split(", ")
        urgency = next((note.removesuffix(" urgency") for note in notes if note.endswith(" urgency")), "unknown")
        fixed = "yes" if "fixed" in notes else "no"
        # One for all packages that are made from the same source.
        hole = holes.setdefault((match[1], urgency, fixed), {"id": match[1], "severity": urgency, "fixed": fixed})
        hole["component"] = ", ".join(filter(None, (hole.get("component"), match[2])))
    return list(holes.values())


def python_holes(report: Mapping[str, Any]) -> list[Hole]:
    """Holes in a report of pip-audit's, as JSON. It does not say how severe they are."""
    return [
        {
            "id": next((alias for alias in hole["aliases"] if alias.startswith("CVE-")), hole["id"]),
            "component": item["name"],
            "severity": "unknown",
            "fixed": "yes" if hole["fix_versions"] else "no",
        }
        for item in report["dependencies"]
        for hole in item.get("vulns", ())
    ]


class Appliance:
    """One host: where things are.

    Args:
        root: the root of the file system, another directory in tests.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self.configuration = root / "etc/mlops/components/components.json"
        self.requirements = root / "etc/mlops/components/requirements.txt"
        self.directory = root / "var/lib/mlops/components"
        self.metrics = root / "var/lib/mlops/metrics/mlops_components.prom"
        self.known = self.directory / "holes.json"
        self.status = self.directory / "status"
        self.environment = root / "var/cache/mlops-components"
        self._fetched: dict[str, Path | NotCheckedError] = {}
        self._audited: dict[str, list[Hole] | NotCheckedError] = {}

    def lists(self) -> dict[str, dict[str, Any]]:
        """The lists of this host, by service."""
        return {
            path.name.removesuffix(".cdx.json"): json.loads(path.read_text(encoding="utf-8"))
            for path in sorted(self.directory.glob("*.cdx.json"))
        }

    # -- list -----------------------------------------------------------------------------------------------------

    def list_images(self, references: Mapping[str, str]) -> str:
        """List what some images are made of; returns what was done, for people.

        Args:
            references: names of images by service.

        Raises:
            ComponentsError: an image cannot be read.
        """
        self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        for service, reference in references.items():
            (image,) = json.loads(run(DOCKER, "image", "inspect", reference))
            with opened(image) as root:
                document = component_list(service, reference, image, root)
            _write(self.directory / f"{service}.cdx.json", json.dumps(document, indent=1))
        self._forget()
        self._report()
        # Which looks for holes in what is new an hour later.
        run(SYSTEMCTL, "restart", "mlops-components.timer")
        return f"Listed: {', '.join(references)}."

    def _forget(self) -> None:
        """Drop lists of images that the host no longer has, and holes of images that are no longer listed."""
        present = run(DOCKER, "image", "ls", "--all", "--no-trunc", "--quiet").split()
        for service, document in self.lists().items():
            if told_of(document)["id"] not in present:
                (self.directory / f"{service}.cdx.json").unlink()
        ids = {told_of(document)["id"] for document in self.lists().values()}
        results = self._results()
        results["images"] = {key: value for key, value in results["images"].items() if key in ids}
        _write(self.known, json.dumps(results, indent=1))

    # -- check ----------------------------------------------------------------------------------------------------

    def check(self) -> str:
        """Ask the advisories about everything that is listed; returns what was found, for people."""
        settings = json.loads(self.configuration.read_text(encoding="utf-8"))
        former = self._results()["images"]
        images: dict[str, Any] = {}
        with tempfile.TemporaryDirectory() as place:
            for service, document in self.lists().items():
                found = images.setdefault(told_of(document)["id"], {})
                for source, ask in (("debian", self._ask_debsecan), ("python", self._ask_pip_audit)):
                    try:
                        found[source] = {"holes": ask(document, settings[source], Path(place))}
                    except NotCheckedError as error:
                        # What was known is still true.
                        before = former.get(told_of(document)["id"], {}).get(source, {})
                        found[source] = {**before, "problem": str(error)}
                        sys.stderr.write(f"{service}: {source}: not checked: {error}\n")
        _write(self.known, json.dumps({"time": int(time.time()), "images": images}, indent=1))
        return self._report()

    def _ask_debsecan(self, document: Mapping[str, Any], source: str, place: Path) -> list[Hole]:
        suite = suite_of(document)
        data = _once(self._fetched, suite, lambda: _download(source, suite, place))
        status = place / "status"
        status.write_text(dpkg_status(of_kind(document, "deb")), encoding="utf-8")
        command = ["debsecan", f"--suite={suite}", f"--source={data.parent.as_uri()}", f"--status={status}"]
        result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            said = result.stderr.strip() or result.stdout.strip()
            last = said.splitlines()[-1] if said else f"exit status {result.returncode}"
            raise NotCheckedError(f"debsecan cannot read the data of {source}: {last}")
        return debian_holes(result.stdout)

    def _ask_pip_audit(self, document: Mapping[str, Any], source: str, place: Path) -> list[Hole]:
        wanted = "".join(
            f"{item['name']}=={unquote(item['purl'].rpartition('@')[2])}\n" for item in of_kind(document, "pypi")
        )
        # Images that share an environment are asked about once.
        return _once(self._audited, wanted, lambda: self._audit(wanted, source, place)) if wanted else []

    def _audit(self, wanted: str, source: str, place: Path) -> list[Hole]:
        program = self._pip_audit()
        requirements = place / "requirements.txt"
        requirements.write_text(wanted, encoding="utf-8")
        command = [str(program), "--no-deps", "--disable-pip", f"--requirement={requirements}", "--format=json"]
        command += ["--vulnerability-service=osv", f"--osv-url={source}", "--progress-spinner=off"]
        result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        # Its exit status is the same for a hole and for a failure, but of a failure there is no report.
        try:
            return python_holes(json.loads(result.stdout))
        except ValueError:
            last = (result.stderr.strip().splitlines() or [f"exit status {result.returncode}"])[-1]
            reason = textwrap.shorten(last, REASON_LENGTH, placeholder=" …")
            raise NotCheckedError(f"pip-audit has no answer from {source}: {reason}") from None

    def _pip_audit(self) -> Path:
        """pip-audit, in an environment of its own that is made when its requirements changed."""
        digest = hashlib.sha256(self.requirements.read_bytes()).hexdigest()[:12]
        place = self.environment / digest
        program = place / "bin/pip-audit"
        if not program.exists():
            for old in self.environment.iterdir():
                shutil.rmtree(old, ignore_errors=True)
            try:
                run(sys.executable, "-m", "venv", place)
                run(place / "bin/pip", "install", "--quiet", "--require-hashes", "--requirement", self.requirements)
            except ComponentsError as error:
                # So that the next check tries again.
                shutil.rmtree(place, ignore_errors=True)
                last = str(error).splitlines()[-1]
                raise NotCheckedError(f"pip-audit cannot be installed from the Python index: {last}") from error
        return program

    # -- what is told ---------------------------------------------------------------------------------------------

    def _results(self) -> dict[str, Any]:
        """What the last check found: ``time``, and by image and source ``holes``, ``problem`` or both."""
        if not self.known.exists():
            return {"time": 0, "images": {}}
        return dict(json.loads(self.known.read_text(encoding="utf-8")))

    def _report(self) -> str:
        """Write metrics and status; returns the status."""
        results = self._results()
        documents = self.lists()
        lines = [f"mlops_known_holes_check_timestamp_seconds {results['time']}"]
        counted: Counter[str] = Counter()
        unknown: dict[str, list[str]] = {}
        for service, document in documents.items():
            told = told_of(document)
            # What is reproducible is of the year 1 or of 1970: nobody knows how old it is.
            if told["built"] >= "1971":
                built = datetime.fromisoformat(told["built"])
                lines.append(f'mlops_image_built_timestamp_seconds{{image="{service}"}} {built.timestamp():.0f}')
            for source in SOURCES:
                known = results["images"].get(told["id"], {}).get(source, {"problem": "not since it was made"})
                if problem := known.get("problem"):
                    unknown.setdefault(f"{source}: {problem}", []).append(service)
                labels = f'image="{service}",source="{source}"'
                lines.append(f"mlops_known_holes_checked{{{labels}}} {int(not problem)}")
                if "holes" not in known:
                    continue
                holes = Counter((hole["severity"], hole["fixed"]) for hole in known["holes"])
                counted.update(hole["fixed"] for hole in known["holes"])
                lines += [
                    f'mlops_known_holes{{{labels},severity="{severity}",fixed="{fixed}"}} {holes[severity, fixed]}'
                    for severity in SEVERITIES
                    for fixed in ("yes", "no")
                    if holes[severity, fixed]
                ]
                # So that none is told apart from unknown.
                if not holes:
                    lines.append(f'mlops_known_holes{{{labels},severity="unknown",fixed="yes"}} 0')
        self.metrics.parent.mkdir(mode=0o755, exist_ok=True)
        # The collector's user is not root.
        _write(self.metrics, "".join(f"{line}\n" for line in lines), mode=0o644)
        when = time.strftime("%Y-%m-%d", time.gmtime(results["time"])) if results["time"] else "never"
        found = f"{counted['yes']} with a fix, {counted['no']} without" + (", as far as is known" if unknown else "")
        status = [f"Known holes in {len(documents)} images, last looked for: {when}. {found}."]
        for reason, services in sorted(unknown.items()):
            whose = "all images" if len(services) == len(documents) else ", ".join(services)
            status.append(f"Not checked: {reason} ({whose}).")
        _write(self.status, "".join(f"{line}\n" for line in status))
        return "\n".join(status)

    def show(self) -> str:
        """A table of the images and what is known of each, then each hole that has a fix."""
        results = self._results()["images"]
        rows: list[tuple[str, ...]] = [
            ("image", "built", "Debian packages", "Python distributions", "holes with a fix", "without")
        ]
        details = []
        for service, document in self.lists().items():
            told = told_of(document)
            by_source = results.get(told["id"], {})
            holes = [hole for source in by_source.values() for hole in source.get("holes", ())]
            is_known = by_source and not any("problem" in source for source in by_source.values())
            counted = Counter(hole["fixed"] for hole in holes)
            known = [str(counted[fixed]) if is_known else f"{counted[fixed]}+?" for fixed in ("yes", "no")]
            parts = [str(len(of_kind(document, kind))) for kind in ("deb", "pypi")]
            rows.append((service, told["built"][:10], *parts, *known))
            details += [
                f"{service}: {hole['id']} in {hole['component']}, severity {hole['severity']}"
                for hole in holes
                if hole["fixed"] == "yes"
            ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        said = self.status.read_text(encoding="utf-8").splitlines() if self.status.exists() else []
        return "\n".join([*table, "", *said, *details])


def _once(done: dict[str, Checked | NotCheckedError], key: str, work: Callable[[], Checked]) -> Checked:
    """The result of some work that is done once for each key, a failure too."""
    if key not in done:
        try:
            done[key] = work()
        except NotCheckedError as error:
            done[key] = error
    result = done[key]
    if isinstance(result, NotCheckedError):
        raise result
    return result


def _download(source: str, suite: str, place: Path) -> Path:
    """Fetch debsecan's data of a suite, which it would fetch anew for each image."""
    url = f"{source.rstrip('/')}/{suite}"
    target = place / "debsecan" / suite
    target.parent.mkdir(exist_ok=True)
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:  # noqa: S310
            target.write_bytes(answer.read())
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise NotCheckedError(f"{url} cannot be had: {reason}") from error
    return target


def _write(path: Path, text: str, mode: int = 0o600) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.chmod(mode)
    temporary.replace(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as a program."""
    parser = argparse.ArgumentParser(description="What an appliance's images are made of, and holes known of it.")
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="list what images are made of")
    listing.add_argument("images", nargs="+", metavar="SERVICE=IMAGE")
    commands.add_parser("check", help="look for known holes in what is listed")
    commands.add_parser("show", help="show the lists and the holes as a table")
    chosen = parser.parse_args(arguments)
    try:
        appliance = Appliance()
        if chosen.command == "list":
            said = appliance.list_images(dict(pair.split("=", 1) for pair in chosen.images))
        elif chosen.command == "check":
            said = appliance.check()
        else:
            said = appliance.show()
    except (ComponentsError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{said}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
