# Copyright the mlops-appliance authors. SPDX-License-Identifier: Apache-2.0
"""Filters that name images after what they are built from, so that an unchanged image costs no build."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

PREFIX = "mlops"
TAG_DIGITS = 12
# Left behind by tools, and never part of an image.
IGNORED_PARTS = frozenset({"__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache"})


def build_inputs(paths: Iterable[str], root: str) -> list[Path]:
    """The files below some paths, in a stable order.

    Args:
        paths: files and directories, relative to ``root``.
        root: the project's directory.

    Raises:
        FileNotFoundError: a path is not there.
    """
    files: list[Path] = []
    for path in paths:
        start = Path(root) / path
        if not start.exists():
            raise FileNotFoundError(f"{start} is an input of an image and is not there")
        found = [start] if start.is_file() else sorted(item for item in start.rglob("*") if item.is_file())
        files += [file for file in found if not IGNORED_PARTS & set(file.parts)]
    return files


def image_references(builds: Mapping[str, Mapping[str, Any]], root: str, inputs: Iterable[str] = ()) -> dict[str, str]:
    """Name every image by a digest of all that it is made from.

    Args:
        builds: by image, ``context`` and ``paths`` (what it is built from, below the context), ``parents`` (images that
            come before it in the mapping) and anything else that decides how it is built.
        root: the project's directory.
        inputs: texts that every image depends on, such as certificates and mirrors.

    Returns:
        A reference, ``mlops-<image>:<digest>``, by image.
    """
    references: dict[str, str] = {}
    for image, build in builds.items():
        digest = hashlib.sha256()
        parents = [references[parent] for parent in build["parents"]]
        settings = sorted((key, str(value)) for key, value in build.items())
        for text in (image, repr(settings), *parents, *inputs):
            digest.update(hashlib.sha256(text.encode()).digest())
        context = Path(root) / build["context"]
        for file in build_inputs(build["paths"], str(context)):
            digest.update(hashlib.sha256(str(file.relative_to(context)).encode()).digest())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        references[image] = f"{PREFIX}-{image}:{digest.hexdigest()[:TAG_DIGITS]}"
    return references


def image_plan(
    services: Iterable[str],
    builds: Mapping[str, Mapping[str, Any]],
    images: Mapping[str, str],
    sources: Mapping[str, str],
    present: Iterable[str],
) -> list[dict[str, str]]:
    """What has to be done so that the host has the image of every service.

    Args:
        services: services whose images are needed.
        builds: as for `image_references`.
        images: reference of every image.
        sources: ``build``, ``registry`` or ``archive``, by service.
        present: references that are on the host.

    Returns:
        Steps in their order, each with the ``image`` and the ``source`` that it comes from.
    """
    there = set(present)
    missing = [service for service in services if images[service] not in there]
    needed: set[str] = set()

    def need(image: str) -> None:
        if images[image] not in there:
            needed.add(image)
            for parent in builds[image]["parents"]:
                need(parent)

    for service in missing:
        if sources[service] == "build":
            need(service)
    fetched = [service for service in missing if sources[service] != "build"]
    return [
        *({"image": image, "source": "build"} for image in builds if image in needed),
        *({"image": service, "source": sources[service]} for service in fetched),
    ]


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Filters by the name that templates use."""
        return {"image_references": image_references, "image_plan": image_plan}
