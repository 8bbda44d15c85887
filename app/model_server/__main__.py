"""``python -m model_server``: check the configuration and serve."""

from __future__ import annotations

import sys


def main() -> int:
    """Return the exit status: 2 for a configuration that cannot be used."""
    from model_server.common.settings import Settings, SettingsError

    try:
        settings = Settings.from_environment()
    except SettingsError as error:
        print(f"model_server: {error}", file=sys.stderr)
        return 2
    from model_server.supervisor.supervisor import serve

    return serve(settings)


if __name__ == "__main__":
    sys.exit(main())
