"""Other kernels give the same numbers, and the model's own are back afterwards."""

from __future__ import annotations

import pytest
import torch

from editcl.kernels import small_attention
from editcl.model import EditableModel


def test_plain_attention_is_the_fused_one(any_model: EditableModel) -> None:
    config = any_model.hf.config
    before = config._attn_implementation
    inputs = any_model.pad([[5, 6, 7, 8], [9, 10]])
    with torch.no_grad():
        fused = any_model.forward(inputs)
        with small_attention(any_model.hf):
            can = config.model_type != "falcon"
            assert config._attn_implementation == ("eager" if can else before)
            plain = any_model.forward(inputs)
    assert config._attn_implementation == before
    seen = inputs["attention_mask"].bool()
    torch.testing.assert_close(plain[seen], fused[seen], rtol=1e-4, atol=1e-5)


def test_the_models_own_attention_is_back_after_an_error(model: EditableModel) -> None:
    before = model.hf.config._attn_implementation
    with pytest.raises(KeyError), small_attention(model.hf):
        raise KeyError
    assert model.hf.config._attn_implementation == before
