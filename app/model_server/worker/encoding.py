"""Predictions as JSON, the way MLflow writes them, by orjson.

One difference: NaN and the infinities are ``null``, because JSON has no such numbers.
"""

from __future__ import annotations

import base64
import datetime
import json
import math
from typing import Any

import numpy as np
import orjson
import pandas as pd

_OPTIONS = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_NON_STR_KEYS


def dumps(value: Any) -> bytes:
    """Encode what a model returned.

    Raises:
        TypeError: for a value that has no JSON form.
        RecursionError: for one that is nested too deep for the standard library's encoder.
    """
    plain = _columns_to_records(value)
    try:
        return orjson.dumps(plain, default=_plain, option=_OPTIONS)
    except (orjson.JSONEncodeError, RecursionError):
        # Integers beyond 64 bits, lone surrogates and 900 levels are JSON, but not to orjson.
        pass
    try:
        return _standard(plain)
    except ValueError:
        return _standard(_finite(plain))


def predictions(value: Any) -> bytes:
    """The body of a successful answer: ``{"predictions": …}``."""
    return b'{"predictions":' + dumps(value) + b"}"


def _standard(value: Any) -> bytes:
    return json.dumps(value, default=_plain, separators=(",", ":"), allow_nan=False).encode()


def _columns_to_records(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, pd.Series):
        value = pd.DataFrame(value)
    return value.to_dict(orient="records") if isinstance(value, pd.DataFrame) else value


def _plain(value: Any) -> Any:
    """The JSON form of one value that JSON does not know."""
    if isinstance(value, (bytes, bytearray)):
        return base64.encodebytes(value).decode("ascii")
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, float):
        return float(value)
    if isinstance(value, np.datetime64):
        return None if np.isnat(value) else str(np.datetime_as_string(value))
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, (pd.DataFrame, pd.Series)):
        return _columns_to_records(value)
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return None
    if hasattr(value, "model_dump"):
        return value.model_dump()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _finite(value: Any) -> Any:
    """``value`` in types that JSON has, with every float that it cannot write replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value if value is None or isinstance(value, (str, int)) else _finite(_plain(value))
