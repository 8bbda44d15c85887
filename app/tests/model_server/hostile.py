"""Bodies made to cost a server far more than they cost their sender, each in a format that it accepts."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq
from model_server.worker.protocol import CSV, JSON, PARQUET

ROWS = 10_000


def parquet(columns: dict[str, pa.Array], **options: object) -> bytes:
    """A Parquet file as pyarrow writes it, compressed as well as it can."""
    written = io.BytesIO()
    pq.write_table(pa.table(columns), written, **{"compression": "zstd", **options})
    return written.getvalue()


def _one_string_for_every_row() -> bytes:
    indices = pa.array([0] * ROWS, pa.int32())
    strings = pa.array(["x" * 80_000])
    return parquet({"a": pa.DictionaryArray.from_arrays(indices, strings).cast(pa.string())})


def _one_list_for_all() -> bytes:
    return parquet({"a": pa.array([[0] * 20_000_000], pa.list_(pa.int64()))})


def _one_long_string() -> bytes:
    return parquet({"a": pa.array(["x" * 400_000_000])}, use_dictionary=False)


def _many_columns() -> bytes:
    return parquet({f"c{number}": pa.array([1]) for number in range(20_000)}, write_statistics=False)


def _lying_footer() -> bytes:
    """Its metadata say 16 bytes where its pages have 400 million."""
    honest = _one_long_string()
    length = struct.unpack("<I", honest[-8:-4])[0]
    footer = honest[-8 - length : -8]
    size = _zigzag(pq.read_metadata(io.BytesIO(honest)).row_group(0).total_byte_size)
    footer = footer.replace(size, _zigzag(16, len(size)))
    return honest[: -8 - length] + footer + honest[-8:]


def _zigzag(number: int, length: int = 0) -> bytes:
    """A number as Thrift's compact protocol has it, filled up to a length."""
    number <<= 1
    digits = []
    while number or len(digits) < max(length, 1):
        digits.append(number & 127 | 128)
        number >>= 7
    digits[-1] &= 127
    return bytes(digits)


ATTACKS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "JSON, empty lists": (JSON, lambda: b'{"inputs":[' + b"[]," * 3_300_000 + b"[]]}"),
    "JSON, empty objects": (JSON, lambda: b'{"dataframe_records":[' + b"{}," * 3_300_000 + b"{}]}"),
    "JSON, nested lists": (
        JSON,
        lambda: b'{"inputs":[' + b",".join([b"[" * 500 + b"]" * 500] * 10_000) + b"]}",
    ),
    "JSON, nested objects": (
        JSON,
        lambda: b'{"inputs":[' + b",".join([b'{"":' * 400 + b"0" + b"}" * 400] * 5_000) + b"]}",
    ),
    "JSON, too deep": (JSON, lambda: b'{"inputs":' + b"[" * 10_000_000),
    "JSON, one digit each": (JSON, lambda: b'{"inputs":[[' + b"1," * 5_000_000 + b"1]]}"),
    "JSON, a record of many names": (
        JSON,
        lambda: json.dumps({"dataframe_records": [{f"c{number}": 1 for number in range(250_000)}]}).encode(),
    ),
    "JSON, a name for each record": (
        JSON,
        lambda: json.dumps({"dataframe_records": [{f"c{number}": 1} for number in range(ROWS)]}).encode(),
    ),
    "JSON, many columns": (
        JSON,
        lambda: json.dumps({"inputs": {f"c{number}": [1] for number in range(250_000)}}).encode(),
    ),
    "JSON, one long row": (
        JSON,
        lambda: json.dumps({"dataframe_split": {"data": [[1] * 9_000] + [[1]] * (ROWS - 1)}}).encode(),
    ),
    "JSON, one long string": (
        JSON,
        lambda: json.dumps({"inputs": {"a": ["x" * 30_000 + "\0"] + ["x"] * (ROWS - 1)}}).encode(),
    ),
    "JSON, one long string among rows": (
        JSON,
        lambda: json.dumps({"instances": [{"a": "x" * 30_000}] + [{"a": "x"}] * (ROWS - 1)}).encode(),
    ),
    "JSON, the last byte is missing": (JSON, lambda: b'{"inputs":[' + b'"x",' * 2_000_000),
    "CSV, many columns": (CSV, lambda: b",".join([b"c%d" % number for number in range(250_000)]) + b"\n"),
    "CSV, columns without names": (CSV, lambda: b"," * 1_000_000 + b"\n"),
    "CSV, columns of one name": (CSV, lambda: b"a," * 250_000 + b"a\n"),
    "CSV, a row wider than the head": (CSV, lambda: b"a\n" + b"1," * 250_000 + b"1\n"),
    "CSV, many columns and short rows": (
        CSV,
        lambda: b",".join([b"c%d" % number for number in range(900)]) + b"\n1" * 2_000_000,
    ),
    "CSV, many rows": (CSV, lambda: b"a\n" + b"1\n" * 5_000_000),
    "CSV, a quote that never ends": (CSV, lambda: b'a,b\n"' + b"x,\n" * 3_000_000),
    "Parquet, one string for every row": (PARQUET, _one_string_for_every_row),
    "Parquet, one list": (PARQUET, _one_list_for_all),
    "Parquet, one long string": (PARQUET, _one_long_string),
    "Parquet, many columns": (PARQUET, _many_columns),
    "Parquet, a lying footer": (PARQUET, _lying_footer),
}
"""What each is, with its content type and what makes its body."""
