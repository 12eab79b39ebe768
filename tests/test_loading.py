from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import editcl
from editcl import embedded
from editcl.encoding import Sentence
from editcl.errors import EditclError, UnsupportedModel
from editcl.log import EditLog
from editcl.model import EditableModel

SENTENCE = Sentence("{} is in the city of", "The Eiffel Tower", "Rome")


@pytest.fixture
def folder(tmp_path: Path, hf_model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A complete Hugging Face folder."""
    return saved(tmp_path / "model", hf_model, tokenizer)


def saved(path: Path, hf: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Path:
    hf.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def log_prob(model: EditableModel) -> torch.Tensor:
    return model.score([SENTENCE]).log_prob


# -- load ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [str, Path])
def test_a_folder_gives_the_model_that_was_saved(
    folder: Path, kind: type, model: EditableModel
) -> None:
    loaded = editcl.load(kind(folder), device=tiny.DEVICE)
    assert isinstance(loaded, EditableModel)
    assert isinstance(loaded.log, EditLog)
    assert loaded.name == str(folder)
    assert torch.equal(log_prob(loaded), log_prob(model))


def test_a_folder_with_a_start_token_keeps_it(
    tmp_path: Path, bos_tokenizer: PreTrainedTokenizerFast
) -> None:
    loaded = editcl.load(saved(tmp_path / "m", tiny.build("llama"), bos_tokenizer), device="cpu")
    assert loaded.encode([SENTENCE])[0].ids[0] == bos_tokenizer.bos_token_id


def test_the_home_folder_can_be_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert editcl.load("~/model", device="cpu").n_layers == tiny.N_LAYERS


@pytest.mark.parametrize(
    ("stored", "asked", "expected"),
    [
        (torch.float32, None, torch.float32),
        (torch.float16, None, torch.float32),
        (torch.bfloat16, None, torch.bfloat16),
        (torch.float16, torch.float16, torch.float16),
        (torch.float16, "float16", torch.float16),
        (torch.float32, "torch.bfloat16", torch.bfloat16),
    ],
)
def test_the_number_format_is_the_checkpoints_or_what_is_asked_for(
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
    stored: torch.dtype,
    asked: torch.dtype | str | None,
    expected: torch.dtype,
) -> None:
    path = saved(tmp_path / "m", tiny.build().to(stored), tokenizer)
    loaded = editcl.load(path, device="cpu", dtype=asked)
    assert {p.dtype for p in loaded.hf.parameters()} == {expected}


@pytest.mark.parametrize("dtype", ["int8", "single", torch.int64, 16])
def test_a_number_format_that_is_none_is_refused(folder: Path, dtype: object) -> None:
    with pytest.raises(EditclError, match="is none of float32, bfloat16"):
        editcl.load(folder, dtype=dtype)  # type: ignore[arg-type]


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "abacus"])
def test_a_device_that_is_none_is_refused(folder: Path, device: str) -> None:
    with pytest.raises(EditclError, match=f"device '{device}' can't be used.*Use 'cpu' or 'cuda'"):
        editcl.load(folder, device=device)


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "~/nowhere", "a/b/c", "..\\x"])
def test_a_folder_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(EditclError, match=r"there is no folder .*Pass a folder that"):
        editcl.load(name)
    with pytest.raises(EditclError, match="there is no folder"):
        editcl.load(Path("nowhere"))


def test_a_file_is_no_folder(folder: Path) -> None:
    with pytest.raises(EditclError, match="there is no folder"):
        editcl.load(folder / "model.safetensors")


def test_the_hub_out_of_reach_is_told_with_a_remedy() -> None:
    with pytest.raises(EditclError, match=r"can't be had from the Hugging Face hub.*pass the fold"):
        editcl.load("nobody/no-such-model")
    with pytest.raises(EditclError, match="name is empty"):
        editcl.load(" ")


def test_a_folder_without_config_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(EditclError, match="has no config.json.*save_pretrained"):
        editcl.load(folder)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(EditclError, match="PEFT adapter, not a model.*merge_and_unload"):
        editcl.load(folder)


def test_pickle_weights_are_refused(folder: Path, hf_model: PreTrainedModel) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(EditclError, match="has no weights"):
        editcl.load(folder)
    torch.save(hf_model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(EditclError, match="only pickle weights.*as safetensors"):
        editcl.load(folder)


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path, hf_model: PreTrainedModel) -> None:
    hf_model.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match="has no tokenizer.*editcl.wrap"):
        editcl.load(tmp_path)


def test_a_damaged_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(UnsupportedModel, match="the tokenizer of .* can't be loaded"):
        editcl.load(folder)


@pytest.mark.parametrize("keep", [0, 5, 500, 20_000])
def test_truncated_weights_are_refused(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(EditclError, match="can't be (read|loaded)"):
        editcl.load(folder)


def test_missing_weights_are_refused_rather_than_drawn_at_random(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["transformer.h.1.mlp.c_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(EditclError, match=r"lacks 1 weights.*h\.1\.mlp\.c_proj\.weight"):
        editcl.load(folder)


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_inner": 128}))
    with pytest.raises(UnsupportedModel, match="can't be loaded"):
        editcl.load(folder)


@pytest.mark.parametrize("text", ["", "{", '{"model_type": "no-such-type"}', "[]"])
def test_a_config_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(EditclError, match="can't be loaded"):
        editcl.load(folder)


def test_code_from_strangers_is_not_run_unasked(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    theirs = {
        "model_type": "theirs",
        "auto_map": {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"},
    }
    (folder / "config.json").write_text(json.dumps(config | theirs))
    (folder / "theirs.py").write_text("raise SystemExit('run')")
    with pytest.raises(EditclError, match="own Python code.*trust_remote_code=True"):
        editcl.load(folder)


def test_a_mixture_of_experts_is_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = saved(tmp_path / "m", tiny.mixture(), tokenizer)
    with pytest.raises(UnsupportedModel, match="mixture of experts.*Use a dense model"):
        editcl.load(path)


# -- the embedded model -------------------------------------------------------------------------


def test_without_a_name_the_embedded_model_is_loaded() -> None:
    try:
        embedded.model_folder()
    except EditclError as error:
        pytest.skip(str(error))
    model = editcl.load()
    assert model.name == "embedded"
    assert model.n_layers >= 6


def test_the_data_of_a_package_comes_before_that_of_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    package, checkout = tmp_path / "editcl", tmp_path
    monkeypatch.setattr(embedded, "_PACKAGE", package)
    with pytest.raises(EditclError, match="shipped data is missing.*Install editcl again"):
        embedded.data_folder()
    (checkout / "data").mkdir()
    with pytest.raises(EditclError, match="shipped data is missing"):  # some other "data"
        embedded.data_folder()
    (checkout / "data" / "facts.csv").touch()
    assert embedded.data_folder() == checkout / "data"
    (package / "data").mkdir(parents=True)
    (package / "data" / "facts.csv").touch()
    assert embedded.data_folder() == package / "data"
    with pytest.raises(EditclError, match=r"embedded model is missing.*embedded_build"):
        editcl.load()
    shutil.copytree(folder, package / "data" / "model")
    assert editcl.load(device="cpu").name == "embedded"


# -- wrap ---------------------------------------------------------------------------------------


def test_wrapping_keeps_the_very_model(
    hf_model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = editcl.wrap(hf_model, tokenizer, name="mine")
    assert model.hf is hf_model
    assert model.tokenizer is tokenizer
    assert model.name == "mine"
    assert not list(model.log.entries)
    assert editcl.wrap(tiny.build(), tokenizer).name == "GPT2LMHeadModel"


def test_wrapping_again_gives_the_same_editable_model_and_log(
    hf_model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Its weights may be edited by now: they are no base for a second log."""
    model = editcl.wrap(hf_model, tokenizer)
    log = model.log
    assert editcl.wrap(hf_model, tokenizer) is model
    assert model.log is log
    bridge = model.bridge()
    assert editcl.wrap(bridge, tokenizer) is editcl.wrap(bridge, tokenizer)


def test_a_tokenizer_is_needed(hf_model: PreTrainedModel) -> None:
    with pytest.raises(UnsupportedModel, match="has no tokenizer. Pass tokenizer="):
        editcl.wrap(hf_model, None)
    with pytest.raises(UnsupportedModel, match="has no tokenizer"):
        editcl.wrap(hf_model)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt_neox", "gemma3"], indirect=True)
def test_a_bridge_is_edited_through_a_clean_twin(
    architecture: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    own = type(tokenizer).from_pretrained(tmp_path / "tokenizer")
    source = editcl.wrap(tiny.build(architecture), own)
    bridge = source.bridge()
    model = editcl.wrap(bridge)
    assert model.encode([SENTENCE]) == source.encode([SENTENCE])
    assert torch.allclose(log_prob(model), log_prob(source), rtol=1e-5)
    ids = torch.tensor([[5, 6, 7, 8]], device=tiny.DEVICE)
    with torch.no_grad():
        before = bridge(ids)
        weight = model.down_projection(1).weight
        weight.add_(0.3 * torch.randn_like(weight))
        after = bridge(ids)
        assert not torch.allclose(before, after, atol=1e-3)
        torch.testing.assert_close(after, model.hf(ids).logits, rtol=1e-4, atol=1e-5)
    model.hf.save_pretrained(tmp_path / "edited")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "edited")
    torch.testing.assert_close(again.to(tiny.DEVICE)(ids).logits, after, rtol=1e-4, atol=1e-5)


def test_a_bridge_whose_tokenizer_came_from_nowhere_asks_for_one(
    model: EditableModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    bridge = model.bridge()
    with pytest.raises(UnsupportedModel, match="may prepend a start token.*Pass tokenizer="):
        editcl.wrap(bridge)
    assert editcl.wrap(bridge, tokenizer).n_layers == model.n_layers


def test_models_wrapped_by_peft_are_refused(
    hf_model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    import peft

    config = peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(hf_model, config)
    for one in (wrapped, hf_model):  # peft puts its layers into the plain model, too
        with pytest.raises(UnsupportedModel, match=r"wrapped by peft.*unload\(\)"):
            editcl.wrap(one, tokenizer)
    assert editcl.wrap(wrapped.unload(), tokenizer)


def test_quantised_models_are_refused(
    hf_model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    hf_model.is_quantized = True
    with pytest.raises(UnsupportedModel, match="is quantised.*Load it in float32"):
        editcl.wrap(hf_model, tokenizer)


def sizes() -> dict[str, int]:
    return {
        "vocab_size": 64,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }


def test_models_that_do_not_continue_text_are_refused(
    hf_model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    bert = transformers.BertForMaskedLM(transformers.BertConfig(**sizes()))
    t5 = transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )
    for hf in (bert, t5, hf_model.transformer):
        with pytest.raises(UnsupportedModel, match="does not continue text.*Pass a decoder"):
            editcl.wrap(hf, tokenizer)


@pytest.mark.parametrize("thing", [None, "gpt2", torch.nn.Linear(2, 2), object()])
def test_what_is_no_model_is_refused(thing: object, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UnsupportedModel, match="is not a Hugging Face model"):
        editcl.wrap(thing, tokenizer)


def test_wrapping_a_mixture_of_experts_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UnsupportedModel, match="mixture of experts.*Use a dense model"):
        editcl.wrap(tiny.mixture(), tokenizer)


def test_wrapping_an_editable_model_is_refused(
    model: EditableModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(UnsupportedModel, match="EditableModel is not a Hugging Face model"):
        editcl.wrap(model, tokenizer)
