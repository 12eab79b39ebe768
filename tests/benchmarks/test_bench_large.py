"""`editcl bench large` measures what it names; on a tiny model here, on large ones with a GPU."""

from __future__ import annotations

import json

import pytest

from editcl.benchmarks.large import SHAPES, bench_large_edit, bench_large_learn, random_model
from editcl.errors import EditclError


def test_both_sides_find_the_same_values_and_the_edit_lands() -> None:
    found = bench_large_edit("tiny", n_facts=6, n_published=2, device="cpu", dtype="float32")
    assert found.n_facts == 6 and found.n_published == 2
    assert found.values_loss_error[1] < 1e-3
    assert found.values_speedup == pytest.approx(
        found.values_per_second[0] / found.values_per_second[1]
    )
    whole = found.values_seconds + found.solve_seconds + found.write_seconds
    assert found.seconds == pytest.approx(whole, abs=2e-3)
    assert found.efficacy > found.efficacy_before
    assert found.peak_gib is None


def test_the_training_loop_learns_what_the_bare_one_does() -> None:
    found = bench_large_learn("tiny", steps=2, rows=2, repeats=1, device="cpu", dtype="float32")
    assert found.loss_error < 1e-4
    assert all(rate > 0 for rate in found.tokens_per_second)
    assert found.parameters == sum(p.numel() for p in random_model("tiny").hf.parameters())


def test_the_same_seed_gives_the_same_weights() -> None:
    one, same, other = (random_model("tiny", device="cpu", seed=seed) for seed in (1, 1, 2))
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()


def test_an_unknown_shape_is_told_with_those_that_there_are() -> None:
    with pytest.raises(EditclError, match="gpt-j-6b"):
        random_model("gpt-5")
    with pytest.raises(EditclError, match="only .* facts"):
        bench_large_edit("tiny", n_facts=10**6, device="cpu")


def test_the_layers_of_every_shape_are_layers_that_it_has() -> None:
    for _, _, values, layers in SHAPES.values():
        count = values.get("n_layer", values.get("num_hidden_layers"))
        assert layers == tuple(range(layers[0], layers[-1] + 1)) and layers[-1] < count


def test_the_command_prints_one_object(run) -> None:
    asked = ("bench", "large", "--part", "learn", "--shape", "tiny", "--device", "cpu")
    status, out, _ = run(*asked, "--steps", 1, "--rows", 2, "--json")
    assert status == 0 and json.loads(out)["shape"] == "tiny"
    status, _, err = run("bench", "large", "--part", "other")
    assert status == 1 and "edit or learn" in err
