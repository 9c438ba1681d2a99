"""A tuned model for Hugging Face: a peft adapter on SamModel where the method has one, else the whole model; each with its card."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from bench.errors import RequestError
from bench.exporting.merged import image_notes, mergeable, merged_tensors
from bench.exporting.model_card import model_card
from bench.grid.files import make_room, write_together
from bench.grid.store import Record
from bench.model.backbones import read_backbone
from bench.model.hugging_face import PeftAdapter, hugging_face_name, sam_model_config, to_hugging_face
from bench.model.segmenter import PromptableSegmenter

Files = dict[str, bytes]
OF_LAYER = re.compile(r"\.(?:lora|ia3|vera|b?oft)_")  # between a layer's name and what peft has there


@torch.no_grad()
def write_peft(model: PromptableSegmenter, record: Record, folder: Path) -> list[Path]:
    """Writes a new folder that `PeftModel.from_pretrained(SamModel…, folder)`, or of other methods `SamModel.from_pretrained(folder)`,
    reads, with a README.md. RequestError for a method that has neither form."""
    label = record.spec.method.label
    adapter, decoder = model.tuner.peft(model.sam.image_encoder), model.decoder.merged(model.sam)
    if adapter and decoder is not None and not model.decoder.prompt_tensors():
        files = _adapter_files(model, adapter, decoder, read_backbone(record.spec.backbone).hugging_face)
    else:
        files = _model_files(model, label)
    make_room(folder)
    folder.mkdir()
    files["README.md"] = model_card(record, "adapter_config.json" in files, image_notes(model)).encode()
    write_together(folder, files)
    return [folder / name for name in files]


def _adapter_files(model: PromptableSegmenter, adapter: PeftAdapter, decoder: dict[str, Tensor], base: str) -> Files:
    """A peft adapter; a decoder that is tuned too stands in it whole, as peft saves modules that it trains beside an adapter."""
    shared = {name: tensor for name, tensor in adapter.tensors.items() if not name.startswith("blocks.")}
    tensors = {hugging_face_name(f"image_encoder.{name}"): tensor for name, tensor in adapter.tensors.items() if name not in shared}
    modules = sorted({OF_LAYER.split(name)[0] for name in tensors})
    config: dict[str, Any] = {**adapter.config, "base_model_name_or_path": base, "inference_mode": True, "target_modules": modules}
    if adapter.config["peft_type"] == "IA3":
        config["feedforward_modules"] = [name for name in modules if name.endswith(".lin2")]
    if decoder:
        own = {f"mask_decoder.{name}": tensor for name, tensor in {**model.sam.mask_decoder.state_dict(), **decoder}.items()}
        tensors |= {hugging_face_name(name): tensor for name, tensor in own.items()}
        config["modules_to_save"] = ["mask_decoder"]
    named = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
    named |= {f"base_model.{name}": tensor for name, tensor in shared.items()}
    return {"adapter_config.json": _json(config), "adapter_model.safetensors": _tensors(named)}


def _model_files(model: PromptableSegmenter, label: str) -> Files:
    merged = merged_tensors(model)
    if merged is None:
        raise RequestError(f"{label} is neither a peft adapter nor merged into plain SAM weights; these can: {', '.join(mergeable())}.")
    return {"config.json": _json(sam_model_config(model.sam.config)), "model.safetensors": _tensors(to_hugging_face(merged))}


def _json(content: dict[str, Any]) -> bytes:
    return f"{json.dumps(content, indent=1, sort_keys=True)}\n".encode()


def _tensors(tensors: dict[str, Tensor]) -> bytes:
    content: bytes = save({name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}, {"format": "pt"})
    return content
