import re

_PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+|\d+")

def subtokens(text: str) -> list[str]:
    return [part.lower() for part in _PARTS.findall(text)]
