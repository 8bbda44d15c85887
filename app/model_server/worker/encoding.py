"""Predictions as JSON, the way MLflow writes them, by orjson.

One difference: NaN and the infinities are ``null``, because JSON has no such numbers.
"""

from __future__ import annotations

import base64
import datetime
import json
import math
from typing import Any

import orjson

_OPTIONS = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_NON_STR_KEYS


def dumps(value: Any) -> bytes:
    """Encode what a model returned.

    Raises:
        TypeError: for a value that has no JSON form.
    """
    plain = _columns_to_records(value)
    try:
        return orjson.dumps(plain, default=_plain, option=_OPTIONS)
    except (orjson.JSONEncodeError, RecursionError):
        # Integers beyond 64 bits and lone surrogates are JSON, but not to orjson.
        return json.dumps(_finite(plain), default=_plain, separators=(",", ":"), allow_nan=False).encode()


def predictions(value: Any) -> bytes:
    """The body of a successful answer: ``{"predictions": …}``."""
    return b'{"predictions":' + dumps(value) + b"}"


def _columns_to_records(value: Any) -> Any:
    module = type(value).__module__
    if module.startswith("pandas"):
        import pandas

        if isinstance(value, pandas.Series):
            value = pandas.DataFrame(value)
        if isinstance(value, pandas.DataFrame):
            return value.to_dict(orient="records")
    return value.tolist() if module == "numpy" and hasattr(value, "tolist") else value


def _plain(value: Any) -> Any:
    """The JSON form of one value that JSON does not know."""
    if isinstance(value, (bytes, bytearray)):
        return base64.encodebytes(value).decode("ascii")
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, float):
        return float(value)
    if type(value).__module__ == "numpy":
        import numpy

        if isinstance(value, numpy.datetime64):
            return None if numpy.isnat(value) else str(numpy.datetime_as_string(value))
        if isinstance(value, (numpy.ndarray, numpy.generic)):
            return value.tolist()
    if type(value).__module__.startswith("pandas"):
        import pandas

        if isinstance(value, (pandas.DataFrame, pandas.Series)):
            return _columns_to_records(value)
        if pandas.api.types.is_scalar(value) and pandas.isna(value):
            return None
    if hasattr(value, "model_dump"):
        return value.model_dump()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _finite(value: Any) -> Any:
    """``value`` with every float that JSON cannot write replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
