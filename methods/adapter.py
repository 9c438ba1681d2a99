"""Somebody else's adapter: what Hugging Face's peft trained on SamModel, evaluated as it is."""

import re
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.errors import RequestError
from bench.grid.registry import METHODS
from bench.model.checkpoints import check_numbers, first_line, read_tensors
from bench.model.decoder import Decoder
from bench.model.hugging_face import PeftAdapter, adapter_config, from_hugging_face, sam_model_config, to_hugging_face
from bench.model.method import Method
from bench.model.placement import PlacedTuner
from bench.model.retuned import RetunedTuner, with_tensors
from bench.model.sam import Sam, Tuner
from bench.model.sam_modules import MaskDecoder
from bench.model.sizes import PyramidConfig
from methods.boft import BOFTTuner
from methods.dora import DoRATuner
from methods.ia3 import IA3Tuner
from methods.lora import LoRATuner
from methods.oft import OFTTuner
from methods.vera import VeRATuner

CONFIG, WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
MODEL, LAYERS = "base_model.", "base_model.model.vision_encoder.layers."
MEANING = {  # of a config, what this project's own adapters say
    *("peft_type", "r", "lora_alpha", "use_dora", "projection_prng_key", "oft_block_size", "use_cayley_neumann"),
    *("boft_block_size", "boft_n_butterfly_factor", "rank_pattern", "alpha_pattern"),
}
# What changes nothing, or stands in the tensors' names and shapes; any other key with a value is left to peft.
HARMLESS = {
    *("target_modules", "feedforward_modules", "base_model_name_or_path", "inference_mode", "task_type", "revision", "peft_version"),
    *("auto_mapping", "lora_dropout", "init_lora_weights", "init_ia3_weights", "megatron_core", "qalora_group_size", "runtime_config"),
    *("vera_dropout", "d_initial", "save_projection", "module_dropout", "boft_dropout", "init_weights"),
    *("eps", "num_cayley_neumann_terms"),  # of what `coft` and `use_cayley_neumann` would turn on
}
IN_MODEL = re.compile(r"\.modules_to_save|\.default")  # what peft adds to the names of what it saves
OWN: tuple[type[PlacedTuner], ...] = (LoRATuner, DoRATuner, IA3Tuner, VeRATuner, OFTTuner, BOFTTuner)


class AdaptedDecoder(Decoder):
    """SAM's mask decoder with some tensors of its own."""

    def __init__(self, own: MaskDecoder) -> None:
        super().__init__()
        self.own = own

    def mask_decoder(self, sam: Sam) -> MaskDecoder:
        return self.own


@METHODS.register("adapter", listed=False)
@dataclass(frozen=True)
class Adapter(Method):
    """The adapter in a folder, with SAM's encoder and decoder as it leaves them; nothing is trained here.

    file: the folder of adapter_config.json and adapter_model.safetensors (or .bin), or that file. What `bench.export --format peft` wrote
    is computed as it was trained, bit for bit; all else is merged into SAM's weights by peft itself, which has to be installed.
    """

    file: str
    title: ClassVar[str] = "Adapter"
    source: ClassVar[str] = "its authors"
    trains: ClassVar[bool] = False

    @property
    def folder(self) -> Path:
        """Where its two files lie."""
        path = Path(self.file)
        return path.parent if path.name in WEIGHTS else path

    def files(self) -> Mapping[str, list[Path]]:
        """The files that `file` stands for; RequestError where they are not there."""
        weights = [self.folder / name for name in WEIGHTS if (self.folder / name).is_file()]
        if not weights or not (self.folder / CONFIG).is_file():
            raise RequestError(f"adapter(file={self.file!r}): {CONFIG} and {' or '.join(WEIGHTS)} are needed there.")
        return {"file": [self.folder / CONFIG, weights[0]]}

    def build(self, sam: Sam) -> tuple[Tuner, Decoder]:
        if isinstance(sam.config, PyramidConfig):
            raise RequestError(f"adapter(file={self.file!r}): adapters of SAM's SamModel alone are read, and this backbone is none.")
        path, weights = self.files()["file"]
        config, tensors = adapter_config(path), read_tensors(weights)
        check_numbers(str(weights), tensors)
        tuner = own_tuner(sam, config, tensors)
        if tuner:
            return tuner.requires_grad_(False), Decoder()
        return _adapted(sam, self._merged(sam, config, tensors))

    def _merged(self, sam: Sam, config: Mapping[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """SAM's tensors with the adapter merged into them."""
        try:
            return merged_by_peft(sam, self.folder, config, tensors)
        except ImportError:
            raise RequestError(f"adapter(file={self.file!r}) needs peft: pip install -r requirements-backbones.txt.") from None
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise RequestError(f"adapter(file={self.file!r}) does not fit this backbone: {first_line(error)}.") from None


@torch.no_grad()
def own_tuner(sam: Sam, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Tuner | None:
    """The tuner of this project that makes exactly this adapter; None where none does."""
    names = {name: f"blocks.{name.removeprefix(LAYERS)}" if name.startswith(LAYERS) else name.removeprefix(MODEL) for name in tensors}
    if not all(name.startswith(("blocks.", "vera_")) for name in names.values()) or any(
        value and value != "none" for key, value in config.items() if key not in {*HARMLESS, *MEANING}
    ):
        return None
    meaning = {key: config[key] for key in MEANING if config.get(key)}
    adapter = PeftAdapter(meaning, {names[name]: tensor for name, tensor in tensors.items()})
    for kind in OWN:
        with suppress(KeyError, IndexError, RuntimeError, TypeError, ZeroDivisionError):
            tuner = kind.of_peft(sam, adapter)
            if _same(tuner.peft(sam.image_encoder), adapter):
                return tuner
    return None


def _same(a: PeftAdapter | None, b: PeftAdapter) -> bool:
    """Whether they say the same; a value that is 0 or false is as good as none."""
    if a is None or {key: value for key, value in a.config.items() if value} != b.config:
        return False
    return a.tensors.keys() == b.tensors.keys() and all(torch.equal(a.tensors[n], b.tensors[n]) for n in a.tensors)


def merged_by_peft(sam: Sam, folder: Path, config: Mapping[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """SAM's tensors, under its own names, with an adapter merged into them by peft. ImportError where it is not installed; ValueError for
    an adapter of another model, or one that this peft does not know all of."""
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from transformers import SamConfig, SamModel

    if config.get("peft_type") not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise ValueError(f"peft knows no peft_type {config.get('peft_type')!r}")
    frozen = sam.state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        known = PeftConfig.from_pretrained(str(folder))
        if strange := [key for key, value in config.items() if value and not hasattr(known, key)]:  # which peft would pass over
            raise ValueError(f"the peft that is installed does not know its {strange[0]}")
        whole = SamModel(SamConfig(**sam_model_config(sam.config)))
        whole.load_state_dict(to_hugging_face(frozen))
        model = get_peft_model(whole, known)
        found: Any = set_peft_model_state_dict(model, tensors)
        if found.unexpected_keys:
            raise ValueError(f"there is no place for its {found.unexpected_keys[0]}")
        saved = get_peft_model_state_dict(model, save_embedding_layers=False)
        if lacking := [name for name in found.missing_keys if IN_MODEL.sub("", name) in saved]:
            raise ValueError(f"it lacks {lacking[0]}")
        merged = model.merge_and_unload().state_dict()
    return {name: tensor.detach() for name, tensor in from_hugging_face(merged, frozen).items() if name in frozen}


def _adapted(sam: Sam, merged: Mapping[str, Tensor]) -> tuple[Tuner, Decoder]:
    """An encoder and a decoder that have those of the tensors which are not SAM's."""
    changed = {name: tensor for name, tensor in merged.items() if not torch.equal(tensor, sam.state_dict()[name])}
    if odd := [name for name in changed if name.startswith("prompt_encoder.")]:
        raise RequestError(f"The adapter changes SAM's prompt encoder ({odd[0]}), which every method here leaves as it is.")
    parts = []
    for part in ("image_encoder", "mask_decoder"):
        own = {name.removeprefix(f"{part}."): tensor for name, tensor in changed.items() if name.startswith(f"{part}.")}
        parts.append(with_tensors(getattr(sam, part), own).requires_grad_(False))
    return RetunedTuner(parts[0]), AdaptedDecoder(parts[1])
