"""The modules of the package segment-anything, imported without its top level (which needs torchvision for its predictor)."""

import importlib
import importlib.util
import sys
from types import ModuleType


def _modeling() -> ModuleType:
    """`segment_anything.modeling`; a bare stand-in is the parent package only while it is imported, so that a later
    `import segment_anything` still runs the real one."""
    if "segment_anything" in sys.modules:
        return importlib.import_module("segment_anything.modeling")
    found = importlib.util.find_spec("segment_anything")
    if found is None:
        raise ImportError("The package segment-anything is not installed: run `make setup`.")
    parent = ModuleType("segment_anything")
    parent.__path__ = list(found.submodule_search_locations or [])
    sys.modules["segment_anything"] = parent
    try:
        return importlib.import_module("segment_anything.modeling")
    finally:
        del sys.modules["segment_anything"]


_modules = _modeling()
StockSam = _modules.Sam
ImageEncoderViT, MaskDecoder = _modules.ImageEncoderViT, _modules.MaskDecoder
PromptEncoder, TwoWayTransformer = _modules.PromptEncoder, _modules.TwoWayTransformer
_encoder = sys.modules["segment_anything.modeling.image_encoder"]
Attention, Block, PatchEmbed = _encoder.Attention, _encoder.Block, _encoder.PatchEmbed
add_decomposed_rel_pos, get_rel_pos = _encoder.add_decomposed_rel_pos, _encoder.get_rel_pos
window_partition, window_unpartition = _encoder.window_partition, _encoder.window_unpartition
LayerNorm2d, MLPBlock = (getattr(sys.modules["segment_anything.modeling.common"], name) for name in ("LayerNorm2d", "MLPBlock"))
MLP = sys.modules["segment_anything.modeling.mask_decoder"].MLP
