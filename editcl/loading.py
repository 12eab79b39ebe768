"""From a hub name, a folder or objects in memory to an EditableModel with its log.

Loads plain Hugging Face folders: safetensors only, and only complete ones (a missing weight would
be drawn at random without a word). Knows nothing of facts, methods or what the log holds.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from editcl.architecture import is_bridge, model_behind
from editcl.embedded import model_folder
from editcl.errors import EditclError, UnsupportedModel
from editcl.model import EditableModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Attribute of a Hugging Face model that leads to its editable model.
_MARK = "_editcl_model"

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
    "*.tiktoken",
)


def load(
    name_or_folder: str | Path | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    log: str | Path | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> EditableModel:
    """An editable model from the hub, from a folder, or (without a name) the embedded one.

    Args:
        name_or_folder: a name on the Hugging Face hub ("gpt2-xl"), or a local folder that
            `save_pretrained` wrote. None: the small model that ships with editcl.
        device: where to put it; None takes the first CUDA device if there is one, else the CPU.
        dtype: number format of the weights, as a torch dtype or its name; None keeps the
            checkpoint's, except that float16 becomes float32 on a CPU, which is slow and coarse
            in float16, and for the embedded model, which is then the same on every device.
        log: folder of a durable edit log; its active edits are applied. None keeps it in memory.
        trust_remote_code: run the Python code that some hub models bring along.
        revision: branch, tag or commit on the hub.

    Raises:
        EditclError: the folder is missing or incomplete, or the hub can't be reached.
        UnsupportedModel: the architecture has no dense down-projection that can be written.
    """
    target = choose_device(device)
    wanted = choose_dtype(dtype)
    embedded = name_or_folder is None
    source = model_folder() if name_or_folder is None else _source(name_or_folder)
    options = {"trust_remote_code": trust_remote_code, "revision": revision}
    if isinstance(source, Path):
        _check_folder(source)
        options["local_files_only"] = True
    with _as_is() if sys.stderr.isatty() and not embedded else _quiet():
        hf = _load_weights(source, options, wanted)
        tokenizer = _load_tokenizer(source, options)
    if wanted is None and hf.dtype == torch.float16 and (embedded or target.type == "cpu"):
        hf = hf.float()
    hf = hf.to(target)
    return wrap(hf, tokenizer, log=log, name="embedded" if embedded else str(source))


def wrap(
    hf_model: Any,
    tokenizer: Any = None,
    *,
    log: str | Path | None = None,
    name: str | None = None,
) -> EditableModel:
    """An editable model around a Hugging Face model in memory; the model stays what it is.

    Wrapping a model again gives the editable model that it has already, with its log: its weights
    may be edited by now, and are no base for a second one.

    A TransformerBridge works too: the editable model is then a clean Hugging Face twin that
    shares every parameter with it, so that MLP edits show in the bridge, hooks and all.

    Args:
        hf_model: a decoder language model such as GPT2LMHeadModel, or a TransformerBridge.
        tokenizer: its fast tokenizer. A bridge's own serves if none is given, without the start
            token that the bridge makes it prepend.
        log: folder of a durable edit log; its active edits are applied. None keeps it in memory.
        name: what to call it; by default what it was loaded from.

    Raises:
        UnsupportedModel: no tokenizer; or the model is wrapped by peft, quantised, an encoder, a
            mixture of experts, or otherwise without a dense down-projection per layer.
    """
    from editcl.log import EditLog

    asked = hf_model
    known: EditableModel | None = getattr(asked, _MARK, _Known(None)).model
    if known is not None and log is None:
        _check_model(known.hf)  # adapters may have been injected since
        return known
    if is_bridge(hf_model):
        tokenizer = _plain_tokenizer(hf_model) if tokenizer is None else tokenizer
        hf_model = model_behind(hf_model)
    _check_model(hf_model)
    name = name or getattr(hf_model, "name_or_path", "") or type(hf_model).__name__
    model = EditableModel(hf_model, tokenizer, name=name) if known is None else known
    model.log = EditLog(model, log)  # takes the place of a known model's log, or says why it can't
    object.__setattr__(asked, _MARK, _Known(model))
    return model


class _Known:
    """Leads from a Hugging Face model to its editable model; a copy of the one has none yet."""

    def __init__(self, model: EditableModel | None) -> None:
        self.model = model

    def __deepcopy__(self, memo: dict[int, Any]) -> _Known:
        return _Known(None)

    def __reduce__(self) -> tuple[type[_Known], tuple[None]]:
        return _Known, (None,)


# -- what is asked for --------------------------------------------------------------------------


def choose_device(device: torch.device | str | None) -> torch.device:
    """The device that is meant; by default the first CUDA device, or else the CPU.

    Raises:
        EditclError: it can't be used.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise EditclError(
            f"device {str(device)!r} can't be used: {_first_line(error)}. Use 'cpu' or 'cuda'."
        ) from error
    return chosen


def choose_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """The number format that is meant, also by name; None stays None.

    Raises:
        EditclError: it is no floating-point format.
    """
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype.removeprefix("torch."), dtype)
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        return dtype
    raise EditclError(f"dtype {dtype!r} is none of float32, bfloat16, float16, float64.")


def _source(name_or_folder: str | Path) -> Path | str:
    """A folder as a Path, a hub name as a string."""
    text = str(name_or_folder)
    path = Path(name_or_folder).expanduser()
    if path.is_dir():
        return path
    looks_local = text.startswith((".", "~")) or text.count("/") > 1 or "\\" in text
    if isinstance(name_or_folder, Path) or path.is_absolute() or looks_local or path.is_file():
        raise EditclError(
            f"there is no folder {text!r}. Pass a folder that save_pretrained wrote, or the name "
            "of a model on the Hugging Face hub."
        )
    if not text.strip():
        raise EditclError("the model's name is empty. Pass none at all for the embedded model.")
    return text


# -- reading a checkpoint -----------------------------------------------------------------------


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise EditclError(
                f"{folder} holds a PEFT adapter, not a model. Load its base model, or merge it "
                "(peft's merge_and_unload) and save that."
            )
        raise EditclError(
            f"{folder} has no config.json, so it is not a Hugging Face model folder. Save the "
            "model with save_pretrained, or rename the folder if you meant a hub model."
        )
    if not any(folder.glob("*.safetensors")):
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth"))
        raise EditclError(
            f"{folder} has only pickle weights, which can run code when they are read. Where you "
            "trust them, load them with transformers and save_pretrained them as safetensors."
            if pickled
            else f"{folder} has no weights (*.safetensors). Copy or download them completely."
        )
    if not any(any(folder.glob(pattern)) for pattern in TOKENIZER_FILES):
        raise UnsupportedModel(
            f"{folder} has no tokenizer. Save it there (tokenizer.save_pretrained), or load the "
            "model with transformers and pass both to editcl.wrap."
        )


def _load_weights(
    source: Path | str, options: dict[str, Any], dtype: torch.dtype | None
) -> PreTrainedModel:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        hf, info = AutoModelForCausalLM.from_pretrained(
            source,
            dtype="auto" if dtype is None else dtype,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    except SafetensorError as error:
        raise EditclError(
            f"the weights in {source} can't be read: {_first_line(error)}. They are truncated or "
            "damaged: copy or download them again."
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise _load_error(source, error) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise EditclError(
            f"{source} lacks {len(missing)} weights of a {type(hf).__name__}, such as "
            f"{missing[0]!r}. Get the complete checkpoint, or the right kind of model."
        )
    return hf


def _load_tokenizer(source: Path | str, options: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise UnsupportedModel(
            f"the tokenizer of {source} can't be loaded: {_first_line(error)}. Save it beside the "
            "weights (tokenizer.save_pretrained)."
        ) from error


def _load_error(source: Path | str, error: Exception) -> EditclError:
    if "trust_remote_code" in str(error):
        return UnsupportedModel(
            f"{source} brings its own Python code. If you trust it, pass trust_remote_code=True."
        )
    if isinstance(source, Path):
        return UnsupportedModel(f"{source} can't be loaded: {_first_line(error)}")
    return EditclError(
        f"{source!r} can't be had from the Hugging Face hub: {_first_line(error)}. Check the "
        "name; without a network, download it where there is one (`hf download NAME "
        "--local-dir FOLDER`) and pass the folder."
    )


# -- what can be edited -------------------------------------------------------------------------


def _check_model(hf: Any) -> None:
    from transformers import PreTrainedModel

    kind = type(hf).__name__
    if any(type(module).__module__.startswith("peft.") for module in _modules(hf)):
        raise UnsupportedModel(
            f"the model is wrapped by peft ({kind}). Pass the plain one: peft's unload() takes "
            "the adapters out, merge_and_unload() writes them into the weights."
        )
    if not isinstance(hf, PreTrainedModel):
        raise UnsupportedModel(
            f"{kind} is not a Hugging Face model (PreTrainedModel) nor a TransformerBridge. "
            "Pass what AutoModelForCausalLM.from_pretrained returns, uncompiled and unwrapped."
        )
    if getattr(hf, "is_quantized", False):
        raise UnsupportedModel(
            f"the model is quantised ({kind}): its weights can't take small changes. Load it in "
            "float32, bfloat16 or float16."
        )
    if hf.config.is_encoder_decoder or not hf.can_generate():
        raise UnsupportedModel(
            f"{kind} does not continue text (an encoder, or no language-model head). Pass a "
            "decoder language model such as GPT2LMHeadModel or LlamaForCausalLM."
        )


def _modules(hf: Any) -> Iterator[torch.nn.Module]:
    return hf.modules() if isinstance(hf, torch.nn.Module) else iter(())


def _plain_tokenizer(bridge: Any) -> Any:
    """A bridge's tokenizer as its folder has it: the bridge makes it prepend a start token."""
    from transformers import AutoTokenizer

    tokenizer = bridge.tokenizer
    if tokenizer is None:
        return None
    try:
        return AutoTokenizer.from_pretrained(tokenizer.name_or_path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UnsupportedModel(
            "the bridge's tokenizer may prepend a start token, and the one that it was made from "
            f"({tokenizer.name_or_path!r}) can't be loaded. Pass tokenizer=..."
        ) from error


# -- small things -------------------------------------------------------------------------------


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of transformers inside: for an instant's work, or where nobody looks."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def _as_is() -> Iterator[None]:
    yield
