"""Lets the tests import the plugins as Ansible does, under ``ansible.module_utils`` and by file for modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import ansible.module_utils

ROOT = Path(__file__).parents[1]
PLUGINS = ROOT / "plugins"

ansible.module_utils.__path__.append(str(PLUGINS / "module_utils"))
sys.path.insert(0, str(PLUGINS / "modules"))
# The tests on a host look at the same pages.
sys.path.append(str(ROOT / "molecule" / "default" / "tests"))


def load_plugin(path: str) -> ModuleType:
    """Import a plugin that Ansible finds by its file, such as an action or a filter.

    Args:
        path: file below ``plugins/``.
    """
    file = PLUGINS / path
    spec = importlib.util.spec_from_file_location(f"{file.parent.name}_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
