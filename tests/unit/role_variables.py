"""What a role makes of its settings, rendered by Ansible itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar

ROLES = Path(__file__).parents[2] / "roles"

init_plugin_loader()


def rendered(role: str, name: str, **settings: Any) -> Any:
    """The value of one of a role's variables.

    Args:
        role: whose variable it is.
        name: of the variable.
        settings: settings that differ from their defaults.
    """
    place = ROLES / role
    loader = DataLoader()
    loader.set_basedir(str(place))
    # Roles of one play see one another's: which models there are is asked by others.
    files = [
        ROLES / name / kind / "main.yml" for name in ("training", "serving", role) for kind in ("defaults", "vars")
    ]
    variables = {
        key: value
        for file in files
        for key, value in loader.load_from_file(str(file), trusted_as_template=True).items()
    } | {
        "inventory_hostname": "host.example.org",
        # Where the lookup of templates searches.
        "ansible_search_path": [str(place)],
        **settings,
    }
    return Templar(loader=loader, variables=variables).template(variables[name])
