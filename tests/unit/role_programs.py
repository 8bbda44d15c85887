"""Programs that a role brings to a host, as modules, which they are not by name."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROLES = Path(__file__).parents[2] / "roles"


def loaded(role: str, name: str) -> ModuleType:
    """A program of a role.

    Args:
        role: whose it is.
        name: of its file, without the suffix.
    """
    spec = importlib.util.spec_from_file_location(name, ROLES / role / "files" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look for their module there.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
