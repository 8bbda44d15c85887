"""``python -m environments``: check the configuration and answer."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Return the exit status: 2 for a configuration that cannot be used."""
    from environments.settings import Settings, SettingsError

    try:
        settings = Settings.from_environment()
    except SettingsError as error:
        print(f"environments: {error}", file=sys.stderr)
        return 2
    from model_server.common import logs

    from environments.maker import Maker
    from environments.server import Server
    from environments.store import Store

    logs.configure()
    # As process 1 nothing would end it otherwise.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    store = Store(settings.directory)
    store.clean()
    maker = Maker(settings, store)
    server = Server(settings, store, maker)
    maker.start()
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
