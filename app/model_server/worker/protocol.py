"""MLflow's scoring protocol as bytes: content types, JSON bodies, CSV and Parquet, up to what a model is given."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import orjson

from model_server.worker.errors import NotAcceptedError, RequestError, SchemaError

if TYPE_CHECKING:
    import pandas
    from mlflow.types.schema import Schema

    from model_server.worker.budget import Budget

JSON = "application/json"
CSV = "text/csv"
PARQUET = "application/vnd.apache.parquet"
MEDIA_TYPES = (JSON, CSV, PARQUET)

INPUT_KEYS = ("inputs", "instances", "dataframe_split", "dataframe_records")
_ONE_KEY = f"The input must be a JSON dictionary with exactly one of the input fields {', '.join(INPUT_KEYS)}"

# orjson reads integers beyond 64 bits as floats, the standard library as integers.
_LONG_NUMBER = re.compile(rb"\d{19}")


def media_type(content_type: str | None) -> str:
    """The media type of a request, JSON when the header is missing.

    Raises:
        NotAcceptedError: for another type, a parameter other than ``charset``, or a charset other than UTF-8.
    """
    if not content_type:
        return JSON
    if content_type == JSON:
        return JSON
    media, *parameters = (part.strip() for part in content_type.split(";"))
    if media.lower() not in MEDIA_TYPES:
        raise NotAcceptedError(f"This predictor only supports the content types {', '.join(MEDIA_TYPES)}.")
    for parameter in filter(None, parameters):
        name, _, value = parameter.partition("=")
        if name.strip().lower() != "charset":
            raise NotAcceptedError("Unrecognized content type parameter: only charset=utf-8 is supported.")
        if value.strip().strip('"').lower() not in ("utf-8", "utf8"):
            raise NotAcceptedError("The scoring server only supports UTF-8.")
    return media.lower()


def parse_json(body: bytes, budget: Budget) -> Any:
    """The JSON in ``body``. NaN and the infinities are read, because MLflow's own client writes them.

    Raises:
        TooLargeError: when it has more values than a request may have; it is not parsed.
        RequestError: when it is not JSON.
    """
    budget.check_json(body)
    try:
        return json.loads(body) if _LONG_NUMBER.search(body) else orjson.loads(body)
    except (ValueError, RecursionError):
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise RequestError(
                "Invalid input. Ensure that input is a valid JSON formatted string.", detail=repr(error)
            ) from None


def decode_json(body: bytes, budget: Budget) -> dict[str, Any]:
    """The JSON object in ``body``; as :func:`parse_json`.

    Raises:
        RequestError: when it is not an object.
    """
    decoded = parse_json(body, budget)
    if not isinstance(decoded, dict):
        raise RequestError(f"{_ONE_KEY}. Received a {_json_name(decoded)}.")
    return decoded


def input_key(decoded: dict[str, Any]) -> str:
    """Which of the four input fields a JSON body has.

    Raises:
        RequestError: when it has none, or more than one.
    """
    found = [key for key in INPUT_KEYS if key in decoded]
    if len(found) != 1:
        raise RequestError(f"{_ONE_KEY}. Received {len(found)} of them.")
    return found[0]


def count_rows(key: str, data: Any) -> int:
    """How many rows the value of an input field asks for; 1 for anything that has no rows."""
    if key == "dataframe_split" and isinstance(data, dict):
        data = data.get("data")
    elif key in ("inputs", "instances") and isinstance(data, dict):
        return max((len(column) for column in data.values() if isinstance(column, list)), default=1)
    return len(data) if isinstance(data, list) else 1


def read_csv(body: bytes, schema: Schema | None, budget: Budget) -> pandas.DataFrame:
    """A data frame from CSV as ``DataFrame.to_csv`` writes it.

    Args:
        body: UTF-8.
        schema: the inputs of the model's signature, or None without one.
        budget: what it may unfold to.

    Raises:
        TooLargeError: when it has more than a request may have; of too many rows, one too many is parsed.
        RequestError: when it is not such CSV, or the signature is not one of columns.
    """
    import pandas

    try:
        dtypes: Any = schema and dict(zip(schema.input_names(), schema.pandas_types(), strict=False))
        text = body.decode("utf-8")
        frame = pandas.read_csv(io.StringIO(text), dtype=dtypes, nrows=budget.check_csv(body, text))
        budget.check_rows(len(frame))
        return frame
    except RequestError:
        raise
    except Exception as error:  # noqa: BLE001 - parsers of foreign bytes raise anything
        raise RequestError(
            "Failed to parse input as a Pandas DataFrame. Ensure that the input is a valid CSV-formatted Pandas "
            "DataFrame produced using the `pandas.DataFrame.to_csv()` method.",
            detail=repr(error),
        ) from None


def read_parquet(body: bytes, budget: Budget) -> pandas.DataFrame:
    """A data frame from Parquet as ``DataFrame.to_parquet`` writes it.

    Raises:
        TooLargeError: when it would unfold to more than a request may have; it is not unfolded.
        RequestError: when it is not Parquet.
    """
    import pandas

    from model_server.worker import parquet

    try:
        parquet.check(body, budget)
        frame = pandas.read_parquet(io.BytesIO(body))
        budget.check_rows(len(frame))
        return frame
    except RequestError:
        raise
    except Exception as error:  # noqa: BLE001 - parsers of foreign bytes raise anything
        raise RequestError(
            "Failed to parse input as a Pandas DataFrame. Ensure that the input is a valid Parquet Pandas "
            "DataFrame produced using the `pandas.DataFrame.to_parquet()` method.",
            detail=repr(error),
        ) from None


# What MLflow says without repeating the input, and may therefore be passed on. Names in them are the signature's.
_PASSED_ON = re.compile(
    r"Dataframe split format must be a dictionary\. Got \w+"
    r"|Dataframe split format must have 'data' field and optionally 'columns' and 'index' fields"
    r"|Dataframe records format must be a list of records\. Got \w+"
    r"|Provided dataframe_\w+ field is not a valid dataframe representation in '\w+' format"
    r"|Model is missing inputs \[[^\]]*\]"
    r"|The input column '[^']*' is required by the model signature but missing from the input data"
    r"|Model inference is missing inputs\. The model signature declares \d+ inputs +but the provided value only "
    r"has \d+ inputs"
    r"|Incompatible input types for column [^.]{1,200}\. Can not safely convert \w+ to \w+"
    r"|Failed to convert column .{1,200}? to type '[^']*'"
    r"|Shape of input \([\d, ]*\) does not match expected shape \([-\d, ]*\)"
    r"|dtype of input \S+ does not match expected dtype \w+"
    r"|The length of values for each input/column name are not the same"
    r"|Parameters must be a dictionary"
    r"|Request payload must be a dictionary with 'inputs' key when the model contains a valid type hint"
)


def schema_error(text: str, *, invalid_parameter: bool) -> RequestError:
    """The answer to input that MLflow refuses with ``text``: what of it repeats no input, and where to look.

    Args:
        text: MLflow's message.
        invalid_parameter: MLflow's code is INVALID_PARAMETER_VALUE, not BAD_REQUEST.
    """
    if passed_on := _PASSED_ON.search(text):
        reason = passed_on.group() + "."
    else:
        reason = "The input cannot be converted to what the model's signature asks for."
    message = f"Invalid input. {reason} GET /model shows the signature."
    return (SchemaError if invalid_parameter else RequestError)(message, detail=text)


def params_error(text: str, names: Sequence[str]) -> RequestError:
    """The answer to params that MLflow refuses with ``text``.

    Args:
        text: MLflow's message.
        names: of the parameters of the signature whose values do not fit.
    """
    reason = f"The value of {' and '.join(names)} in params does not fit" if names else "Params must be a dictionary"
    return SchemaError(f"Invalid input. {reason}. GET /model shows the signature.", detail=text)


def _json_name(value: object) -> str:
    names = {list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
