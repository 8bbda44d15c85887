"""Tokens of the model API: made, listed, revoked, and never kept."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path
from typing import Any

import api_tokens
import pytest


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


def run(place: Path, state: str, client: str = "", digest: str = "", check_mode: bool = False) -> dict[str, Any]:
    return api_tokens.make_so(state, client, digest, str(place), check_mode=check_mode)


def test_a_token_has_256_bits_and_only_its_digest_is_kept(place: Path) -> None:
    result = run(place, "made", "shop")
    assert len(result["token"]) == 43, "32 bytes in base64"
    (path,) = place.iterdir()
    assert path.name == hashlib.sha256(result["token"].encode()).hexdigest()
    assert path.read_text() == "shop\n"
    assert result["changed"] is True


def test_only_root_and_nginx_can_read_who_has_one(place: Path) -> None:
    run(place, "made", "shop")
    (path,) = place.iterdir()
    assert stat.S_IMODE(place.stat().st_mode) == 0o750
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_client_has_several_at_once_and_one_of_them_is_revoked_by_its_digest(place: Path) -> None:
    first, second = (run(place, "made", "shop")["token"] for _ in range(2))
    digests = [hashlib.sha256(token.encode()).hexdigest() for token in (first, second)]
    run(place, "made", "other")
    (gone,) = run(place, "revoked", "shop", digests[0][:12])["tokens"]
    assert gone["digest"] == digests[0][:12]
    left = run(place, "listed")["tokens"]
    assert [(token["client"], token["digest"] == digests[1][:12]) for token in left] == [
        ("other", False),
        ("shop", True),
    ]


def test_without_a_digest_all_of_a_client_go(place: Path) -> None:
    for client in ("shop", "shop", "other"):
        run(place, "made", client)
    assert len(run(place, "revoked", "shop")["tokens"]) == 2
    assert [token["client"] for token in run(place, "listed")["tokens"]] == ["other"]


def test_the_list_says_who_and_when_and_never_the_token(place: Path) -> None:
    token = run(place, "made", "shop")["token"]
    result = run(place, "listed")
    assert result["changed"] is False
    assert set(result["tokens"][0]) == {"client", "made", "digest"}
    assert token not in str(result)
    assert hashlib.sha256(token.encode()).hexdigest() not in str(result), "nor the whole digest"


def test_a_place_that_is_not_there_has_no_tokens(place: Path) -> None:
    assert run(place, "listed")["tokens"] == []


@pytest.mark.parametrize("client", ["", "two words", "../up", "a\nb", ".hidden", "x" * 65, "snowman\u2603"])
@pytest.mark.parametrize("state", ["made", "revoked"])
def test_what_is_no_name_is_refused_with_what_one_is(place: Path, state: str, client: str) -> None:
    with pytest.raises(api_tokens.TokenError, match=r"^client: .* is no name: give up to 64 letters"):
        run(place, state, client)
    assert not place.exists()


def test_a_client_without_a_token_is_refused_with_those_who_have_one(place: Path) -> None:
    run(place, "made", "shop")
    with pytest.raises(api_tokens.TokenError, match=r"^client: shpo has no token; tokens have: shop\.$"):
        run(place, "revoked", "shpo")
    with pytest.raises(api_tokens.TokenError, match=r"has no token whose digest begins with 0123456789abcdef"):
        run(place, "revoked", "shop", "0123456789abcdef")
    with pytest.raises(api_tokens.TokenError, match=r"^digest: 'x\*' is no beginning"):
        run(place, "revoked", "shop", "x*")


def test_a_digest_that_could_mean_two_is_refused(place: Path) -> None:
    place.mkdir()
    for last in "01":
        (place / ("a" * 63 + last)).write_text("shop\n")
    with pytest.raises(api_tokens.TokenError, match=r"^digest: 2 tokens of shop begin with aa: give more of it"):
        run(place, "revoked", "shop", "aa")


def test_check_mode_changes_nothing(place: Path) -> None:
    assert run(place, "made", "shop", check_mode=True)["token"] == ""
    assert not place.exists()
    run(place, "made", "shop")
    run(place, "revoked", "shop", check_mode=True)
    assert len(run(place, "listed")["tokens"]) == 1
