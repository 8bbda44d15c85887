"""Lets the tests import the plugins as Ansible does, under ``ansible.module_utils`` and by file for modules."""

from __future__ import annotations

import sys
from pathlib import Path

import ansible.module_utils

PLUGINS = Path(__file__).parents[1] / "plugins"

ansible.module_utils.__path__.append(str(PLUGINS / "module_utils"))
sys.path.insert(0, str(PLUGINS / "modules"))
