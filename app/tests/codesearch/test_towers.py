from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from codesearch.corpus import Function
from codesearch.towers import SCALE, Tower, TwoTowers, count_matrix


def trained(functions: list[Function], seed: int = 0, epochs: int = 5) -> tuple[TwoTowers, list[float]]:
    losses: list[float] = []
    towers = TwoTowers.empty().extended(functions, seed)
    towers.train(functions, epochs, 0.1, np.random.default_rng(seed), lambda _, loss: losses.append(loss))
    return towers, losses


def mean_rank(towers: TwoTowers, functions: list[Function]) -> float:
    scores = towers.scorer(functions)([function.query for function in functions])
    return float((scores > np.diag(scores)[:, None]).sum(axis=1).mean() + 1)


def test_training_brings_descriptions_to_their_functions(functions: list[Function]) -> None:
    before = mean_rank(TwoTowers.empty().extended(functions, 0), functions)
    towers, losses = trained(functions)
    assert mean_rank(towers, functions) < 2 < before / 4
    assert losses[-1] < losses[0] / 2


def test_the_words_of_both_towers_meet_before_any_training(functions: list[Function]) -> None:
    towers = TwoTowers.empty().extended(functions, 0)
    words = towers.code.words
    body, name = towers.code.vectors[words["csv"]], towers.code.vectors[words["name:csv"]]
    np.testing.assert_array_equal(body, name)


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(functions: list[Function], tmp_path: Path) -> None:
    contents = []
    for number, seed in enumerate((0, 0, 1)):
        directory = tmp_path / str(number)
        directory.mkdir()
        trained(functions, seed, epochs=2)[0].save(directory)
        contents.append({path.name: path.read_bytes() for path in directory.iterdir()})
    assert contents[0] == contents[1] != contents[2]


def test_a_saved_model_is_loaded_as_it_was(functions: list[Function], tmp_path: Path) -> None:
    towers, _ = trained(functions, epochs=1)
    towers.save(tmp_path)
    np.testing.assert_array_equal(
        TwoTowers.load(tmp_path).encode_functions(functions), towers.encode_functions(functions)
    )


def test_new_words_are_added_behind_the_known_ones() -> None:
    tower = Tower.empty().extended([["read", "file"], ["read", "file"]], seed=0)
    longer = tower.extended([["read", "socket"], ["socket", "rare"]], seed=0)
    assert list(longer.words) == ["file", "read", "socket"]
    np.testing.assert_array_equal(longer.vectors[:2], tower.vectors)


def test_vectors_have_length_one_and_unknown_text_none() -> None:
    tower = Tower.empty().extended([["read", "file"], ["read"], ["file"]], seed=0)
    vectors, _ = tower.encode(tower.matrix([["read", "read", "file"], ["xyzzy"]]))
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 0], abs=1e-4)


def test_counts_are_per_bag_and_known_feature() -> None:
    counts = count_matrix([["b", "a", "b", "x"], []], {"a": 0, "b": 1})
    np.testing.assert_array_equal(counts.toarray(), [[1, 2], [0, 0]])


def test_a_step_follows_the_gradient_of_the_loss(functions: list[Function]) -> None:
    """One tiny step lowers the loss by what the gradient, taken by differences, says."""
    batch = functions[:20]

    def loss(towers: TwoTowers) -> float:
        similarities = SCALE * towers.scorer(batch)([function.query for function in batch]).astype(float)
        both = 0.0
        for scores in (similarities, similarities.T):
            both -= np.mean(np.diag(scores) - np.log(np.exp(scores).sum(axis=1)))
        return both

    towers = TwoTowers.empty().extended(batch, 0)
    for tower in (towers.query, towers.code):
        tower.vectors = tower.vectors.astype(np.float64).astype(np.float32)
    start = [tower.vectors.copy() for tower in (towers.query, towers.code)]
    before = loss(towers)
    towers.train(batch, 1, 1e-4, np.random.default_rng(0), lambda *_: None)
    steps = [tower.vectors - vectors for tower, vectors in zip((towers.query, towers.code), start, strict=True)]
    after = loss(towers)
    for tower, vectors, step in zip((towers.query, towers.code), start, steps, strict=True):
        tower.vectors = vectors - step
    mirrored = loss(towers)

    assert after < before < mirrored
    assert before - after == pytest.approx(mirrored - before, rel=0.1)
