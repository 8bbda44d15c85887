"""What a request may unfold to: bodies made to cost more than that are refused before they do, all others are read."""

from __future__ import annotations

import io
import json
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hostile import ATTACKS, ROWS, parquet
from model_server.worker.budget import Budget
from model_server.worker.errors import GoneError, LargeRequestError, TooLargeError
from model_server.worker.http import Request
from model_server.worker.model import ServedModel
from model_server.worker.protocol import CSV, JSON, PARQUET, read_csv, read_parquet
from model_server.worker.scoring import Scoring
from serving_harness import SIGNATURES, store_model

MAX_BODY = 16 * 1024 * 1024
BUDGET = Budget.of(ROWS, MAX_BODY, None)


@pytest.fixture(scope="module", params=["no signature", "four doubles"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    """With the limits that a server has by default."""
    stored = store_model(tmp_path_factory.mktemp("budget"), "echo", signature=SIGNATURES[request.param])
    return ServedModel.load(stored, ROWS, MAX_BODY)


@pytest.fixture(scope="module")
def attacks() -> dict[str, tuple[str, bytes]]:
    return {name: (media_type, make()) for name, (media_type, make) in ATTACKS.items()}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_body_that_asks_for_too_much_is_a_413_that_costs_little(
    name: str, model: ServedModel, attacks: dict[str, tuple[str, bytes]]
) -> None:
    media_type, body = attacks[name]
    allocated = pa.default_memory_pool().bytes_allocated()
    tracemalloc.start()
    try:
        with pytest.raises(TooLargeError) as refused:
            model.read(media_type, body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "Send" in refused.value.message, "it says what to do instead"
    assert peak < 128 * 1024 * 1024, "it was unfolded before it was refused"
    assert pa.default_memory_pool().bytes_allocated() - allocated < 1024 * 1024


# --- the bounds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("columns", "most"), [(None, 10_000), (4, 1_000), (3_000, 6_000)])
def test_a_table_may_have_twice_the_columns_of_its_signature_and_a_thousand_at_least(
    columns: int | None, most: int
) -> None:
    budget = Budget.of(ROWS, MAX_BODY, columns)
    budget.check_columns(most)
    with pytest.raises(TooLargeError, match=f"More than {most} columns"):
        budget.check_columns(most + 1)


@pytest.mark.parametrize(
    ("body", "values"),
    [(b"[1,2,3]", 5), (b'{"a":1}', 9), (b'["a","b"]', 6), (b"[[],[]]", 10)],
)
def test_values_are_counted_with_what_they_take(body: bytes, values: int) -> None:
    Budget(ROWS, values, 1_000, MAX_BODY).check_json(body)
    with pytest.raises(TooLargeError, match=f"More than {values - 1} values"):
        Budget(ROWS, values - 1, 1_000, MAX_BODY).check_json(body)


@pytest.mark.parametrize("piece", [b"{},", b"[],", b'"",', b"1,", b"[[]],", b'{"":{}},'])
def test_no_json_counts_for_more_than_what_is_not_even_counted(piece: bytes) -> None:
    body = b"[" + piece * 1_000 + b"1]"
    assert json.loads(body)
    with pytest.raises(TooLargeError, match="values"):
        Budget(ROWS, len(body) // 3 - 1, 1_000, MAX_BODY).check_json(b"{},[" * len(body))
    Budget(ROWS, 3 * len(body), 1_000, MAX_BODY).check_json(body)
    weighed = 8 * body.count(b"{") + 3 * body.count(b"[") + body.count(b",") + body.count(b'"') // 2
    assert weighed <= 3 * len(body)


@pytest.mark.parametrize(
    ("key", "data"),
    [
        ("dataframe_split", {"index": [*range(2_000)], "columns": [*range(2_000)], "data": 1}),
        ("dataframe_split", {"data": {f"c{number}": {f"r{number}": 1} for number in range(2_000)}}),
        ("inputs", {"a": [*range(5_000)], **{f"c{number}": 1 for number in range(1_000)}}),
        ("instances", [{f"c{number}": 1} for number in range(2_000)]),
        ("inputs", [["x" * 10_000], ["x"] * 5_000]),
    ],
)
def test_a_table_is_measured_as_it_will_be_built(key: str, data: Any) -> None:
    with pytest.raises(TooLargeError):
        BUDGET.check_table(key, data)


@pytest.mark.parametrize(
    ("key", "data"),
    [
        ("dataframe_records", [{f"c{number}": 1.5 for number in range(200)}] * ROWS),
        ("dataframe_split", {"columns": [*range(200)], "data": [[1.5] * 200] * ROWS}),
        ("inputs", [[1] * 500] + [[1]] * (ROWS - 1)),
        ("inputs", {"a": ["x" * 1_000] * ROWS, "b": [1] * ROWS}),
        ("inputs", 1),
        ("dataframe_split", [1]),
        ("dataframe_records", {"a": 1}),
    ],
)
def test_a_table_of_ten_thousand_rows_and_two_hundred_columns_fits(key: str, data: Any) -> None:
    BUDGET.check_table(key, data)


# --- what is answered among small requests -------------------------------------------------------------------------


COSTLY = {
    "JSON, nested lists": (JSON, b'{"inputs":[' + b",".join([b"[" * 200 + b"]" * 200] * 150) + b"]}"),
    "JSON, a name for each record": (
        JSON,
        json.dumps({"dataframe_records": [{f"c{number}": 1} for number in range(100)]}).encode(),
    ),
    "JSON, one long row": (JSON, json.dumps({"dataframe_split": {"data": [[1] * 900] + [[1]] * 99}}).encode()),
    "JSON, one long string": (JSON, json.dumps({"inputs": {"a": ["x" * 30_000] + ["x"] * 99}}).encode()),
    "JSON, many rows": (JSON, json.dumps({"inputs": ["q"] * 101}).encode()),
    "JSON, a large chat": (JSON, json.dumps({"messages": [{"role": "user", "content": "q"}] * 500}).encode()),
    "CSV, many columns and short rows": (CSV, b",".join([b"c%d" % number for number in range(900)]) + b"\n1" * 99),
    "CSV, many rows": (CSV, b"a\n" + b"1\n" * 101),
    "CSV, a quote that never ends": (CSV, b'a,b\n"' + b"x,\n" * 10_000),
    "Parquet": (PARQUET, parquet({name: pa.array([1.0]) for name in "abcd"})),
}
"""None is longer than 64 KiB, and each is within what a request may have, or not even of the protocol."""


@pytest.mark.parametrize("name", COSTLY)
def test_a_short_body_that_costs_more_than_a_small_request_is_a_large_one(name: str, model: ServedModel) -> None:
    media_type, body = COSTLY[name]
    assert len(body) <= 64 * 1024
    with pytest.raises(TooLargeError):
        model.read(media_type, body, small=True)
    request = Request(SimpleNamespace(closed=False), "POST", b"/invocations", {b"content-type": media_type.encode()})  # type: ignore[arg-type]
    request.body, request.small = body, True
    with pytest.raises(LargeRequestError):
        Scoring(model).answer(request)


@pytest.mark.parametrize(
    ("media_type", "body"),
    [
        (JSON, json.dumps({"dataframe_split": {"columns": [*"abcd"], "data": [[1.5] * 4] * 100}}).encode()),
        (JSON, json.dumps({"inputs": [{"a": 1, "b": None, "c": 1.5, "d": 2}] * 20}).encode()),
        (JSON, json.dumps({"dataframe_records": [dict.fromkeys("abcde", 1.5)]}).encode()),
        (CSV, b"a,b,c,d\n" + b"1.5,2.5,3.5,4.5\n" * 99),
    ],
)
def test_what_clients_ask_one_by_one_is_small(media_type: str, body: bytes, model: ServedModel) -> None:
    assert model.read(media_type, body, small=True).rows == model.read(media_type, body).rows


@pytest.mark.parametrize("columns", [None, 4, 500, 3_000])
def test_one_row_of_the_signature_is_small(columns: int | None) -> None:
    number = columns or 100
    budget = Budget.small(ROWS, columns)
    row = [1.5] * number
    names = [f"column {name}" for name in range(number)]
    record = dict.fromkeys(names, 1.5)
    for body in ({"dataframe_split": {"columns": names, "data": [row]}}, {"dataframe_records": [record]}):
        budget.check_json(json.dumps(body).encode())
    text = ",".join(names) + "\n" + ",".join(map(str, row)) + "\n"
    assert budget.check_csv(text.encode(), text) is None


# --- what is read as before ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"a,b\n1,2\n",
        b"a,b\r\n1,2\r\n3,4\r\n",
        b"a,b\r1,2\r3,4\r",
        b'a,b\n"x\ny","1,2"\n' * 1,
        b'a,b\n"' + b"line\n" * 60_000 + b'",2\n',
        b'a,b\nab"c,2\n',
        b"\n\na,b\n\n1,2\n",
        b"a\n1,2\n3,4\n",
        b"a,b\n1\n2\n",
        "\ufeffa,b\nä,é\n".encode(),
        b"a\n" + b"x" * 200_000 + b"\n",
        b"a,b\n" + b"1,x\n" * ROWS,
    ],
)
def test_csv_is_read_as_pandas_reads_it(body: bytes) -> None:
    pd.testing.assert_frame_equal(read_csv(body, None, BUDGET), pd.read_csv(io.StringIO(body.decode())))


def test_csv_of_one_row_too_many_is_refused() -> None:
    with pytest.raises(TooLargeError, match=f"More than {ROWS} rows"):
        read_csv(b"a\n" + b"1\n" * (ROWS + 1), None, BUDGET)


@pytest.mark.parametrize("options", [{}, {"use_dictionary": False}, {"data_page_version": "2.0"}, {"version": "1.0"}])
def test_parquet_is_read_as_pandas_reads_it(options: dict[str, Any]) -> None:
    rows = 5_000
    columns = {
        "number": pa.array([float(number) for number in range(rows)]),
        "text": pa.array([f"a text of its own {number}" * 3 for number in range(rows)]),
        "often": pa.array(["one", None, "two", "three", "four"] * (rows // 5)),
        "bytes": pa.array([b"\0" * (number % 7) for number in range(rows)]),
        "truth": pa.array([number % 3 == 0 for number in range(rows)]),
        "words": pa.array([[f"word {number}", "and"] for number in range(rows)], pa.list_(pa.string())),
        "record": pa.array([{"a": number, "b": "x" * 50} for number in range(rows)]),
        "fixed": pa.array([b"1234"] * rows, pa.binary(4)),
        "category": pa.array(["a", "b"] * (rows // 2)).dictionary_encode(),
        "when": pa.array(range(rows), pa.timestamp("us", "UTC")),
    }
    body = parquet(columns, row_group_size=1_000, **options)
    pd.testing.assert_frame_equal(read_parquet(body, BUDGET), pd.read_parquet(io.BytesIO(body)))


def test_parquet_whose_texts_begin_like_the_last_is_read_while_it_is_small() -> None:
    columns = {"a": pa.array([f"prefix {number}" for number in range(100)])}
    body = parquet(columns, use_dictionary=False, column_encoding={"a": "DELTA_BYTE_ARRAY"})
    assert len(read_parquet(body, BUDGET)) == 100
    long = {"a": pa.array(["x" * 50_000] * ROWS)}
    body = parquet(long, use_dictionary=False, column_encoding={"a": "DELTA_BYTE_ARRAY"})
    with pytest.raises(TooLargeError):
        read_parquet(body, BUDGET)


def test_one_long_text_in_a_list_for_every_row_is_refused() -> None:
    body = parquet({"a": pa.array([["x" * 50_000]] * ROWS, pa.list_(pa.string()))})
    with pytest.raises(TooLargeError, match="unfolds"):
        read_parquet(body, BUDGET)


def test_models_of_many_columns_are_asked_with_all_of_them(tmp_path: Path) -> None:
    model = ServedModel.load(store_model(tmp_path, "echo"), ROWS, MAX_BODY)
    names = [f"c{number}" for number in range(5_000)]
    frame = pd.DataFrame([range(5_000)], columns=names)
    written = io.BytesIO()
    frame.to_parquet(written)
    split = json.dumps({"dataframe_split": frame.to_dict(orient="split")}).encode()
    for media_type, body in ((CSV, frame.to_csv(index=False).encode()), (JSON, split), (PARQUET, written.getvalue())):
        assert list(model.read(media_type, body).data.columns) == names


@pytest.mark.parametrize("abandoned", [True, False])
def test_nothing_is_predicted_for_a_client_that_has_left_while_its_body_was_read(
    abandoned: bool, model: ServedModel
) -> None:
    request = Request(SimpleNamespace(closed=not abandoned), "POST", b"/invocations", {})  # type: ignore[arg-type]
    request.body, request.abandoned = b'{"dataframe_records": [{"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0}]}', abandoned
    with pytest.raises(GoneError):
        Scoring(model).answer(request)
