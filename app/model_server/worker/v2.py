"""The Open Inference Protocol (V2) beside MLflow's: its tensors become MLflow's input fields, and answers tensors.

What a request may cost, how it fits the signature and who answers it is decided as for MLflow's protocol. Tensors are
JSON or, by the binary tensor data extension, bytes that follow the JSON.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pandas as pd

from model_server.worker import encoding, protocol
from model_server.worker.errors import NotAcceptedError, RequestError, SchemaError

if TYPE_CHECKING:
    from model_server.worker.budget import Budget

PATH = "/v2"
EXTENSIONS = ("binary_tensor_data",)
OCTETS = "application/octet-stream"
BYTES = "BYTES"

HEADER_LENGTH = "Inference-Header-Content-Length"
DTYPES = {
    "BOOL": np.dtype("?"),
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
}
DATATYPES = {dtype: name for name, dtype in DTYPES.items()}
_JSON_TYPES: dict[str, set[type]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {int, float}}
_MOST_DIMENSIONS = 32
_WEIGHT_OF_A_LIST = 3
"""As in the budget of a JSON body."""
_LENGTH = struct.Struct("<I")


def speaks(path: str) -> bool:
    """Whether a path is one of this protocol, and its errors have this protocol's form."""
    return path.startswith(PATH) and path[len(PATH) : len(PATH) + 1] in ("", "/")


def error_body(body: dict[str, Any]) -> dict[str, Any]:
    """An error of MLflow's form as this protocol has it; the request's id is a header."""
    return {"error": body["message"], **({"detail": body["detail"]} if "detail" in body else {})}


def server() -> dict[str, Any]:
    """The metadata of the server."""
    return {"name": "model_server", "version": version("mlflow-skinny"), "extensions": EXTENSIONS}


def check_media_type(content_type: str | None) -> None:
    """Check the media type of a request; clients that send bytes often send none.

    Raises:
        NotAcceptedError: for another type than JSON and octets.
    """
    if content_type and content_type.partition(";")[0].strip().lower() not in (protocol.JSON, OCTETS):
        raise NotAcceptedError(f"The V2 protocol only supports the content types {protocol.JSON} and {OCTETS}.")


# --- requests ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input."""

    datatype: str
    shape: tuple[int, ...]
    values: list[Any]
    """All of them in one list, row by row; of datatype BYTES ``str`` or ``bytes``."""


@dataclass(frozen=True, slots=True)
class Question:
    """A request for an inference."""

    inputs: dict[str, Tensor]
    parameters: dict[str, Any]
    id: str | None
    outputs: dict[str, bool] | None
    """Which are asked for, and whether as bytes; None for all."""
    binary: bool
    """Whether outputs of which nothing is said are bytes."""

    @classmethod
    def read(cls, body: bytes, header_length: str | None, limit: Budget, budget: Budget) -> Question:
        """A question from a body.

        Args:
            body: of a request.
            header_length: how many bytes of it are JSON, as the header says it, or None: all.
            limit: what any request may have.
            budget: what this one may have.

        Raises:
            TooLargeError: when it has more values than that.
            RequestError: when it is not of the protocol, or shapes and data do not agree.
        """
        head, rest = _split(body, header_length)
        decoded = _dictionary(protocol.parse_json(head, limit), "The body")
        identity = decoded.get("id")
        if not isinstance(identity, str | None):
            raise RequestError("id must be a string.")
        parameters = _dictionary(decoded.get("parameters", {}), "parameters")
        inputs: dict[str, Tensor] = {}
        offset = 0
        for where, name, entry in _entries(decoded, "inputs"):
            if name in inputs:
                raise RequestError(f"{where} has the name of another input.")
            size = _binary_size(entry, where)
            piece = None if size is None else rest[offset : offset + size]
            if size is not None and piece is not None and len(piece) < size:
                raise RequestError(f"{where}: its binary_data_size is more than the body has left.")
            offset += size or 0
            inputs[name] = _tensor(entry, piece, where, budget)
        if offset != len(rest):
            raise RequestError(
                f"The body has {len(rest)} bytes after its JSON, and the binary_data_size of its inputs are {offset}."
            )
        if not inputs:
            raise RequestError("inputs must be a list of at least one tensor.")
        budget.check_values(sum(_weight(tensor.shape) for tensor in inputs.values()))
        binary = parameters.get("binary_data_output", False) is True
        outputs = None
        if decoded.get("outputs"):
            outputs = {
                name: _parameters(entry, where).get("binary_data", binary) is True
                for where, name, entry in _entries(decoded, "outputs")
            }
        return cls(inputs, parameters, identity, outputs, binary)


def _split(body: bytes, header_length: str | None) -> tuple[bytes, memoryview]:
    if header_length is None:
        return body, memoryview(b"")
    if not header_length.isascii() or not header_length.isdigit() or len(header_length) > 18:
        raise RequestError(f"{HEADER_LENGTH} must be a number of bytes.")
    if (length := int(header_length)) > len(body):
        raise RequestError(f"{HEADER_LENGTH} is more than the body has.")
    return body[:length], memoryview(body)[length:]


def _dictionary(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RequestError(f"{what} must be a JSON dictionary.")
    return value


def _entries(decoded: dict[str, Any], field: str) -> Sequence[tuple[str, str, dict[str, Any]]]:
    entries = decoded.get(field)
    if not isinstance(entries, list):
        raise RequestError(f"{field} must be a list of tensors.")
    checked = []
    for number, value in enumerate(entries):
        where = f"{field}[{number}]"
        entry = _dictionary(value, where)
        if not isinstance(name := entry.get("name"), str):
            raise RequestError(f"{where}.name must be a string.")
        checked.append((where, name, entry))
    return checked


def _parameters(entry: dict[str, Any], where: str) -> dict[str, Any]:
    return _dictionary(entry.get("parameters", {}), f"{where}.parameters")


def _binary_size(entry: dict[str, Any], where: str) -> int | None:
    size = _parameters(entry, where).get("binary_data_size")
    if size is not None and (type(size) is not int or size < 0):
        raise RequestError(f"{where}.parameters.binary_data_size must be a number of bytes.")
    if (size is None) is (entry.get("data") is None):
        raise RequestError(f"{where} must have either data or binary_data_size.")
    return size


def _tensor(entry: dict[str, Any], piece: memoryview | None, where: str, budget: Budget) -> Tensor:
    datatype, shape = entry.get("datatype"), entry.get("shape")
    if not isinstance(datatype, str) or (datatype not in DTYPES and datatype != BYTES):
        raise RequestError(f"{where}.datatype must be one of {', '.join([*DTYPES, BYTES])}.")
    if (
        not isinstance(shape, list)
        or not 0 < len(shape) <= _MOST_DIMENSIONS
        or not all(type(size) is int and 0 < size < 2**63 for size in shape)
    ):
        raise RequestError(f"{where}.shape must be a list of 1 to {_MOST_DIMENSIONS} positive integers.")
    count = math.prod(shape)
    if piece is None:
        values = _json_values(entry["data"], shape, count, datatype, where)
    elif datatype == BYTES:
        values = _binary_texts(piece, count, where, budget)
    else:
        dtype = DTYPES[datatype]
        if len(piece) != count * dtype.itemsize:
            raise RequestError(f"{where}: its shape and datatype do not make its binary_data_size.")
        budget.check_values(count)
        raw = np.frombuffer(piece, np.uint8 if datatype == "BOOL" else dtype)
        values = (raw != 0 if datatype == "BOOL" else raw).tolist()
    return Tensor(datatype, tuple(shape), values)


def _json_values(data: Any, shape: list[int], count: int, datatype: str, where: str) -> list[Any]:
    """The values of a tensor in one list, from one list or from lists in lists."""
    if isinstance(data, list) and len(data) == shape[0] and isinstance(data[0], list):
        for size in shape[1:]:
            if not all(isinstance(row, list) and len(row) == size for row in data):
                raise RequestError(f"{where}: its data have another shape than it says.")
            data = list(chain.from_iterable(data))
    if not isinstance(data, list) or len(data) != count:
        raise RequestError(f"{where}: its data have another shape than it says.")
    kinds = set(map(type, data))
    if datatype == BYTES:
        if kinds != {str}:
            raise RequestError(f"{where}: its data must be strings, as its datatype is BYTES.")
        return data
    dtype = DTYPES[datatype]
    fits = kinds <= _JSON_TYPES[dtype.kind]
    if fits and dtype.kind in "iu":
        limits = np.iinfo(dtype)
        fits = limits.min <= min(data) and max(data) <= limits.max
    try:
        if fits:
            return list(map(float, data)) if dtype.kind == "f" and int in kinds else data
    except OverflowError:
        pass
    raise RequestError(f"{where}: its data are not all of its datatype {datatype}.")


def _binary_texts(piece: memoryview, count: int, where: str, budget: Budget) -> list[bytes]:
    """The elements of datatype BYTES, each after its length."""
    if count * _LENGTH.size > len(piece):
        raise RequestError(f"{where}: its shape and datatype do not make its binary_data_size.")
    budget.check_values(count)
    values: list[bytes] = []
    offset = 0
    while offset + _LENGTH.size <= len(piece) and len(values) < count:
        (length,) = _LENGTH.unpack_from(piece, offset)
        offset += _LENGTH.size + length
        values.append(bytes(piece[offset - length : offset]))
    if len(values) != count or offset != len(piece):
        raise RequestError(f"{where}: the lengths of its elements do not make its shape and binary_data_size.")
    return values


def _weight(shape: tuple[int, ...]) -> int:
    """How many values count for a tensor when it is lists in lists."""
    lists = sum(math.prod(shape[:depth]) for depth in range(1, len(shape)))
    return math.prod(shape) + _WEIGHT_OF_A_LIST * lists


# --- answers -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reply:
    """How a question is answered."""

    question: Question
    model: str
    version: str
    names: list[str]
    """Of the outputs in the signature."""

    def encode(self, answer: Any) -> tuple[list[tuple[str, str]], bytes]:
        """The headers that tell of the body, and the body.

        Raises:
            RequestError: when an output is asked for that the model does not have.
        """
        outputs = tensors(answer, self.names)
        wanted = self.question.outputs
        if wanted is None:
            wanted = dict.fromkeys(outputs, self.question.binary)
        elif unknown := wanted.keys() - outputs.keys():
            raise SchemaError(f"{len(unknown)} of the outputs asked for are none of the model: {list(outputs)}.")
        described, pieces = [], []
        for name, binary in wanted.items():
            array = outputs[name]
            datatype = DATATYPES.get(array.dtype.newbyteorder("<"), BYTES)
            entry: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(array.shape)}
            if binary:
                piece = _binary(array, datatype)
                entry["parameters"] = {"binary_data_size": len(piece)}
                pieces.append(piece)
            else:
                entry["data"] = array.ravel().tolist()
            described.append(entry)
        head: dict[str, Any] = {"model_name": self.model, "model_version": self.version}
        if self.question.id is not None:
            head["id"] = self.question.id
        text = encoding.dumps({**head, "outputs": described})
        if not pieces:
            return [("Content-Type", protocol.JSON)], text
        return [("Content-Type", OCTETS), (HEADER_LENGTH, str(len(text)))], b"".join([text, *pieces])


def tensors(answer: Any, names: list[str]) -> dict[str, np.ndarray[Any, Any]]:
    """What a model returned as arrays by name: of numbers and booleans, or of texts and bytes.

    Args:
        answer: of the model. What is no tensor becomes the JSON text of each of its elements.
        names: of the outputs in its signature.
    """
    if isinstance(answer, pd.DataFrame):
        return {str(name): _array(answer.iloc[:, number]) for number, name in enumerate(answer.columns)}
    if isinstance(answer, dict) and answer:
        return {str(name): _array(value) for name, value in answer.items()}
    array = _array(answer)
    if array.ndim == 2 and array.shape[1] == len(names) > 1:
        return {name: array[:, number] for number, name in enumerate(names)}
    return {names[0] if len(names) == 1 else "output-0": array}


def _array(value: Any) -> np.ndarray[Any, Any]:
    if isinstance(value, pd.Series):
        value = value.to_numpy()
    elif isinstance(value, tuple):
        value = list(value)
    try:
        array = np.atleast_1d(np.asarray(value))
    except ValueError:
        array = None  # lists of different lengths
    if array is not None and array.dtype.newbyteorder("<") in DATATYPES:
        return array
    if array is not None and array.dtype.kind in "SU":
        # NumPy's texts of one length lose what is NUL at their end.
        array = np.atleast_1d(np.asarray(value, dtype=object))
    elif array is None or not isinstance(value, np.ndarray):
        # A list of lists of objects: as many elements as it has rows.
        rows = value if isinstance(value, list) else [value]
        array = np.empty(len(rows), dtype=object)
        array[:] = rows
    elements = np.empty(array.size, dtype=object)
    elements[:] = [_text(element) for element in array.ravel()]
    return elements.reshape(array.shape)


def _text(element: Any) -> str | bytes:
    if isinstance(element, (str, bytes)):
        return element
    text = encoding.dumps(element)
    # A date is a string in JSON.
    return str(orjson.loads(text)) if text.startswith(b'"') else text.decode()


def octets(value: str | bytes) -> bytes:
    """The bytes of an element of datatype BYTES."""
    # JSON may hold half of a surrogate pair.
    return value if isinstance(value, bytes) else value.encode(errors="surrogatepass")


def _binary(array: np.ndarray[Any, Any], datatype: str) -> bytes:
    if datatype != BYTES:
        return array.astype(DTYPES[datatype], copy=False).tobytes()
    pieces = []
    for element in array.ravel():
        encoded = octets(element)
        pieces += [_LENGTH.pack(len(encoded)), encoded]
    return b"".join(pieces)
