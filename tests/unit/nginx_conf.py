"""What the role nginx makes of its settings."""

from __future__ import annotations

from typing import Any

import role_variables


def rendered(name: str, **settings: Any) -> Any:
    """The value of one of the role's variables; ``nginx.conf`` is what stands in its file.

    Args:
        name: a variable, or ``nginx.conf``.
        settings: settings that differ from their defaults.
    """
    if name != "nginx.conf":
        return role_variables.rendered("nginx", name, **settings)
    files = role_variables.rendered("nginx", "__nginx_files_plain", **settings)
    (text,) = [item["content"] for item in files if item["name"] == name]
    return text
