"""``python -m model_server.verify <directory> <public key>``: check the signature of a stored version."""

from __future__ import annotations

import sys
from pathlib import Path

from model_server.common.signature import SignatureError, verify


def main(arguments: list[str]) -> int:
    """Check, and return the exit status; what is wrong is the last line on standard error."""
    directory, public_key = map(Path, arguments)
    try:
        verify(directory, public_key)
    except SignatureError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
