"""The state law: what a weight is, to the last bit."""

from __future__ import annotations

import pytest
import torch
from logbook import add, digest, fresh, updates_of

from editcl.errors import NonFiniteError
from editcl.log import EditLog
from editcl.log.state import Factors, add_product, checksum
from editcl.update import WeightUpdate


@pytest.mark.parametrize("shape", [(48, 16), (33, 17), (7, 5)])
@pytest.mark.parametrize("n_facts", [1, 2, 50, 300])
def test_the_product_is_that_of_float64_rounded_once(shape: tuple[int, int], n_facts: int) -> None:
    first, second = torch.randn(shape[0], n_facts), torch.randn(shape[1], n_facts)
    total = torch.zeros(shape)
    add_product(total, first, second)
    torch.testing.assert_close(total, (first.double() @ second.double().T).float())


def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    first, second, start = torch.randn(257, 60), torch.randn(131, 60), torch.randn(257, 131)
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(start.clone())
            add_product(results[-1], first, second)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


def test_one_column_has_the_bits_of_the_general_product() -> None:
    first, second = torch.randn(48, 1), torch.randn(16, 1)
    one, general = torch.randn(48, 16).repeat(2, 1, 1)
    add_product(one, first, second)
    zero = torch.zeros(1)
    add_product(
        general,
        torch.cat([first, zero.expand(48, 1)], dim=1),
        torch.cat([second, zero.expand(16, 1)], dim=1),
    )
    assert torch.equal(one, general)


def test_blocks_of_rows_do_not_change_the_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, start = torch.randn(50, 9), torch.randn(16, 9), torch.randn(50, 16)
    whole, blocks = start.clone(), start.clone()
    add_product(whole, first, second)
    monkeypatch.setattr("editcl.log.state.ELEMENTS_PER_BLOCK", 7 * 16)
    add_product(blocks, first, second)
    assert torch.equal(whole, blocks)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_an_append_adds_left_times_right_in_the_orientation_of_keys(architecture: str) -> None:
    model = fresh(architecture)
    log = EditLog(model)
    before = model.down_projection(1).weight.clone()
    (update,) = updates_of(model, 5, 3, (1,))
    add(log, model, 5, 3, (1,))
    torch.testing.assert_close(model.down_projection(1).weight, before + update.dense())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_appending_one_by_one_equals_the_sum_from_the_base(dtype: torch.dtype) -> None:
    model = fresh(dtype=dtype)
    log = EditLog(model)
    base = model.down_projection(0).weight.clone()
    assert model.dtype == dtype
    total = base.double() if dtype == torch.float64 else base.float()
    for seed in range(6):
        n_facts = 1 + seed % 3
        add(log, model, seed, n_facts)
        (update,) = updates_of(model, seed, n_facts, (0,))
        total += (update.left.double() @ update.right.double().T).float()
    assert torch.equal(model.down_projection(0).weight, total.to(dtype))
    assert log.verify().ok


@pytest.mark.parametrize("factor", [torch.float64, torch.float16, torch.bfloat16])
def test_factors_keep_their_dtype_up_to_float32(factor: torch.dtype) -> None:
    update = WeightUpdate("w", torch.randn(4, 2).to(factor), torch.randn(3, 2).to(factor))
    kept = Factors.of(update)
    assert kept.left.dtype == (torch.float32 if factor == torch.float64 else factor)
    assert kept.left.is_contiguous() and kept.left.data_ptr() != update.left.data_ptr()


def test_a_factor_that_float32_can_not_hold_is_refused() -> None:
    update = WeightUpdate("w", torch.full((2, 1), 1e300, dtype=torch.float64), torch.ones(2, 1))
    with pytest.raises(NonFiniteError):
        Factors.of(update)


def test_a_change_that_overflows_the_dtype_leaves_everything_as_it_was() -> None:
    model = fresh(dtype=torch.float16)
    log = EditLog(model)
    add(log, model)
    before = digest(model)
    name = model.down_projection(0).name
    huge = WeightUpdate(
        name, torch.full((model.d_mlp, 1), 1e3), torch.full((model.d_model, 1), 1e3)
    )
    with pytest.raises(NonFiniteError, match="float16"):
        log.append([huge], log.entries[0].facts, method="test", layers=(0,))
    assert digest(model) == before and len(log) == 1 and log.verify().ok


def test_the_checksum_sees_one_bit_and_the_dtype() -> None:
    for tensor in (torch.randn(33, 7), torch.randn(5).bfloat16(), torch.randn(9)[1:]):
        other = tensor.clone()
        assert checksum(other) == checksum(tensor)
        other.view(torch.uint8).view(-1)[-1] ^= 1
        assert checksum(other) != checksum(tensor)
    assert checksum(torch.zeros(4)) != checksum(torch.zeros(4).half())


def test_views_and_aliases_of_a_parameter_see_the_edit() -> None:
    model = fresh()
    view = model.down_projection(0).weight
    parameter = model.down_projection(0).parameter
    log = EditLog(model)
    before = view.clone()
    add(log, model)
    assert not torch.equal(view, before)
    assert model.down_projection(0).parameter is parameter
