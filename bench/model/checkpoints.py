"""Loading SAM's weights: from Meta's .pth files, from safetensors or from a state dict, with a sentence for what does not fit."""

import contextlib
import hashlib
import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bench.errors import CheckpointError
from bench.grid.files import file_sha256
from bench.model.backbones import PRETRAINED, checkpoint_path, read_backbone
from bench.model.hugging_face import from_hugging_face, is_hugging_face
from bench.model.pyramid_files import pyramid_tensors
from bench.model.sam import Sam
from bench.model.sizes import CONFIGS, PyramidConfig, SamConfig

WRAPPERS = ("model", "state_dict", "model_state", "model_state_dict")  # keys of a mapping in which scripts keep a model's tensors
PREFIXES = ("module.", "_orig_mod.", "model.", "sam.")  # of DistributedDataParallel, torch.compile, Lightning and scripts
ENCODER = r"(?:image_encoder|vision_encoder|vision_backbone)\.(?:backbone\.|trunk\.)?"  # in Meta's names and Hugging Face's
BLOCK, POSITIONS = (
    re.compile(rf"{ENCODER}(?:blocks|layers)\.(\d+)\."),
    re.compile(rf"{ENCODER}(?:pos_embed|embeddings\.position_embeddings)$"),
)
HQ_PARTS = re.compile(r"mask_decoder\.(hf_|compress_vit_feat|embedding_)")  # of SAM-HQ's decoder, and CAT-SAM's, beside SAM's own
STORED_AS = (torch.float32, torch.float16, torch.bfloat16)


def load_sam(
    arch: str | SamConfig,
    checkpoint: str | Path | Mapping[str, Tensor] | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> Sam:
    """A frozen SAM.

    arch: a name of configs/backbones/ ("vit_b", "medsam", "vit_b(image_size=512)") or a SamConfig. checkpoint: a path (.pth, .pt, .bin,
    .safetensors, a model's folder) or a state dict, in the names of SAM or Hugging Face's SamModel; None takes `pretrained/<file>` for
    a name, and random weights of `seed` for a SamConfig. Tables of positions are resized to an image_size that is not the
    architecture's own.
    CheckpointError, in one sentence, for a file that is absent, damaged, pickled code or of another architecture.
    """
    spec = read_backbone(arch) if isinstance(arch, str) else None
    config = arch if isinstance(arch, SamConfig) else read_backbone(arch).config
    own = CONFIGS[spec.architecture] if spec else config
    if spec and checkpoint is None:
        checkpoint = checkpoint_path(spec.name, PRETRAINED)
    if isinstance(checkpoint, str | Path):
        path = checkpoint_path(spec.name, PRETRAINED, Path(checkpoint)) if spec else Path(checkpoint)
        tensors, found = _read(path)
        sam = _filled(config, tensors, f"{path}{found}", own)
        sam.sha256 = file_sha256(path)
    elif checkpoint is not None:
        sam = _filled(config, checkpoint, "the state dict", own)
    else:
        sam = _random(config, seed)
    if spec:
        sam.normalise_by(spec)
    return sam.to(device)


def _random(config: SamConfig, seed: int) -> Sam:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Sam(config)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file by name, without what training scripts put around them (WRAPPERS) and before names (PREFIXES).

    Files that hold pickled code are refused, never run.
    """
    return _read(path)[0]


def _read(path: Path) -> tuple[dict[str, Tensor], str]:
    """What `read_tensors` returns, and what was taken off, for messages: " (its 'state_dict', without 'module.')"."""
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint {path}.")
    try:
        loaded = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError, OSError) as error:
        if _is_refused(error) or _holds_code(path):
            raise CheckpointError(f"The checkpoint {path} holds pickled code, which is never run: a file of tensors is needed.") from None
        if isinstance(error, pickle.UnpicklingError):
            raise CheckpointError(f"The checkpoint {path} is damaged or no checkpoint: a file of tensors is needed.") from None
        raise CheckpointError(f"The checkpoint {path} is truncated or damaged ({first_line(error)}); get it again.") from None
    tensors, taken = _unwrapped(loaded)
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        found = f"a mapping with {', '.join(map(repr, list(tensors)[:3]))}" if isinstance(tensors, Mapping) else type(tensors).__name__
        raise CheckpointError(f"The checkpoint {path} is not a mapping of names to tensors, as SAM's files are, but {found}.")
    return dict(tensors), f" ({', '.join(taken)})" if taken else ""


def _unwrapped(loaded: Any) -> tuple[Any, list[str]]:
    """A training script's tensors alone, by SAM's own names, and what was around and before them; anything else as it is."""
    inner = [name for name in WRAPPERS if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping)]
    tensors, taken = (loaded[inner[0]], [f"its {inner[0]!r}"]) if len(inner) == 1 else (loaded, [])
    while isinstance(tensors, Mapping) and tensors and (prefix := _common_prefix(tensors)):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
        taken.append(f"without {prefix!r}")
    return tensors, taken


def _common_prefix(names: Iterable[Any]) -> str:
    names = list(map(str, names))
    return next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in names)), "")


def weights_sha256(module: torch.nn.Module) -> str:
    """The sha256 over all tensors of a module: equal exactly when every name, shape and value is."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def architecture_of(tensors: Mapping[str, Tensor]) -> str:
    """The named architecture that fits an encoder's width and depth, with the image size where that is another, or a description."""
    position = next((tensor for name, tensor in tensors.items() if POSITIONS.search(name)), None)
    depth = len({found[1] for name in tensors if (found := BLOCK.search(name))})
    if position is None or not depth:
        return "a file without an image encoder of SAM's names"
    widths = position.shape[1], position.shape[-1]  # a Hiera's is in front
    names = [name for name, config in CONFIGS.items() if config.depth == depth and config.blocks[0].before in widths]
    if not names:
        return f"an encoder of width {widths[1]} and depth {depth}"
    config, side = CONFIGS[names[0]], position.shape[1]
    own_size = side == config.grid or isinstance(config, PyramidConfig)  # whose positions do not depend on the size
    return names[0] if own_size else f"{names[0]}(image_size={side * config.patch_size})"


def _filled(config: SamConfig, tensors: Mapping[str, Tensor], source: str, own: SamConfig) -> Sam:
    """A SAM of these tensors. own: the sizes that the tensors may have where `config` differs in the size of images."""
    with WithoutNumbers():  # no time and memory for weights that are replaced at once
        sam = Sam(config)
    expected, given = sam.state_dict(), tensors
    if isinstance(config, PyramidConfig):
        tensors = pyramid_tensors(tensors, expected)
    elif is_hugging_face(tensors):
        tensors, source = from_hugging_face(tensors, expected), f"{source} (in Hugging Face's names)"
    hq = {name: tensor for name, tensor in tensors.items() if HQ_PARTS.match(name)}
    sam.hq = {name.removeprefix("mask_decoder."): tensor for name, tensor in hq.items()}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in hq}
    if config != own and not isinstance(config, PyramidConfig):  # whose positions do not depend on the size
        tensors = resized_tables(tensors, config)
    missing = [name for name in expected if name not in tensors]
    extra = [name for name in tensors if name not in expected]
    shapes = [
        f"{name} is {tuple(tensors[name].shape)}, not {tuple(expected[name].shape)}"
        for name in expected
        if name in tensors and tensors[name].shape != expected[name].shape
    ]
    problems = [
        f"{len(found)} {what} ({', '.join(found[:3])}{', …' if len(found) > 3 else ''})"
        for what, found in (("missing keys", missing), ("unexpected keys", extra), ("other shapes", shapes))
        if found
    ]
    if problems:
        raise CheckpointError(f"{source} does not fit this architecture, it looks like {architecture_of(given)}: {'; '.join(problems)}.")
    check_numbers(source, {**tensors, **sam.hq})
    sam.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return sam.requires_grad_(False)


def resized_tables(tensors: Mapping[str, Tensor], config: SamConfig) -> dict[str, Tensor]:
    """The tensors with the tables of positions, and of relative positions where attention sees the whole image, at the size of
    `config`: bilinear, as SAM's users resize them."""
    wanted = {"image_encoder.pos_embed": (config.grid, config.grid)}
    for block in config.global_blocks:
        for axis in "hw":
            wanted[f"image_encoder.blocks.{block}.attn.rel_pos_{axis}"] = (2 * config.grid - 1, config.width // config.heads)
    return {**tensors, **{name: _resized(tensors[name], size) for name, size in wanted.items() if name in tensors}}


def _resized(table: Tensor, size: tuple[int, int]) -> Tensor:
    """A table (1, g, g, C), or (2g - 1, c), at another number of places."""
    if table.ndim == 4:
        return F.interpolate(table.float().permute(0, 3, 1, 2), size, mode="bilinear").permute(0, 2, 3, 1).contiguous()
    return F.interpolate(table.float()[None, None], size, mode="bilinear")[0, 0]


class WithoutNumbers(TorchFunctionMode):
    """What is made in it has shapes, and numbers that nobody drew. On the meta device torch would load its compiler, which takes longer
    than all else here."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init" or func in (Tensor.uniform_, Tensor.normal_):
            return args[0] if args else kwargs["tensor"]
        scales = getattr(func, "__name__", "") == "mul" and len(args) == 2 and not isinstance(args[1], Tensor)
        if scales and args[0].is_meta:
            return args[0]
        if func is torch.randn:
            return torch.empty(*args, **{name: given for name, given in kwargs.items() if name != "generator"})
        return func(*args, **kwargs)


def check_numbers(source: str, tensors: Mapping[str, Tensor], kinds: Sequence[torch.dtype] = STORED_AS) -> None:
    """CheckpointError, naming the tensor, where one is of another type of numbers than `kinds`, or holds NaN or infinity."""
    for name, tensor in tensors.items():
        if tensor.dtype not in kinds:
            allowed = ", ".join(str(kind).removeprefix("torch.") for kind in kinds)
            raise CheckpointError(f"{source}: {name} is of {str(tensor.dtype).removeprefix('torch.')}, and {allowed} is needed.")
        if not tensor.isfinite().all():
            raise CheckpointError(f"{source}: {name} holds NaN or infinite numbers: it is damaged, or of a training that diverged.")


def _is_refused(error: Exception) -> bool:
    """Whether torch refused what a pickle would call; an "operand" that it does not know is only a byte of some other file."""
    said = str(error).lower()
    return "torchscript" in said or ("unsupported" in said and "unsupported operand" not in said)


def _holds_code(path: Path) -> bool:
    """Whether a file that torch could not read is a pickle, bare or in a zip, that would call anything but torch's own."""
    try:
        with contextlib.ExitStack() as opened:
            file: IO[bytes] = opened.enter_context(open(path, "rb"))
            if zipfile.is_zipfile(file):
                archive = opened.enter_context(zipfile.ZipFile(file))
                file = opened.enter_context(archive.open(next(name for name in archive.namelist() if name.endswith("data.pkl"))))
            else:
                file.seek(0)
            operations = [(operation.name, str(argument)) for operation, argument, _ in pickletools.genops(file)]
    except Exception:  # whatever else it is, it is no pickle
        return False
    called = [argument for name, argument in operations if name in ("GLOBAL", "INST", "STACK_GLOBAL")]
    return operations[0][0] == "PROTO" and not all(name.startswith(("torch", "collections ")) for name in called)


def first_line(error: Exception) -> str:
    """The first line of what an error says that is no heading, cut to a message's length, without a point at its end."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line and not line.endswith(":")), type(error).__name__)[:240].rstrip(".")
