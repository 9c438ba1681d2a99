"""The card of a model for Hugging Face: its numbers, and all that they depend on."""

from typing import Any

from bench.grid.store import Record
from bench.model.backbones import read_backbone

CARD = """---
library_name: {library}
license: {licence}{base}
pipeline_tag: mask-generation
tags: [segment-anything, {tag}]
---

# {method} on {title}

{method} for the data set {dataset}, tuned by sam-peft-bench on {backbone} ({title}).

| | |
|---|---|
| trained on | {dataset}: {shots} labelled images, draw {draw}, seed {seed} |
| protocol | {protocol} |
| trained parameters | {parameters} |
{scores}
| data fingerprint | `{fingerprint}` |
| backbone's weights | {checkpoint}, sha256 `{checkpoint_sha256}` |
| code | commit `{commit}`, cell `{key}` |

IoU is foreground IoU pooled over all test pixels, each image asked with the {prompt} of its own objects.

{images}

## Use

```python
{use}
```

## Licence

The backbone's weights: {backbone_licence}. {source}. Data sets have licences of their own.
"""
USE = {
    True: """from peft import PeftModel
from transformers import SamModel

model = PeftModel.from_pretrained(SamModel.from_pretrained("{base}"), "THIS FOLDER OR REPOSITORY")
model = model.merge_and_unload()  # a SamModel again; needed of OFT alone, whose layers in peft do not take SAM's maps (B, h, w, C)""",
    False: """from transformers import SamModel

model = SamModel.from_pretrained("THIS FOLDER OR REPOSITORY")""",
}


def model_card(record: Record, is_adapter: bool, images: str) -> str:
    """The README.md of an exported cell, in Markdown. images: how a tool has to take them, a sentence."""
    spec, backbone = record.spec, read_backbone(record.spec.backbone)
    facts, parameters = record.provenance, record.cost.get("trainable_parameters")
    told: dict[str, Any] = vars(spec) | {
        "library": "peft" if is_adapter else "transformers",
        "licence": backbone.licence.lower() if backbone.licence == "Apache-2.0" else "other",
        "base": f"\nbase_model: {backbone.hugging_face}" if backbone.hugging_face else "",
        "tag": spec.method.name,
        "method": spec.method.label,
        "title": backbone.title,
        "parameters": f"{parameters:,}" if isinstance(parameters, int) else "not known",
        "scores": "\n".join(f"| mIoU, selection {rule} | {scores['miou_all']:.2f} % |" for rule, scores in record.scores.items()),
        "fingerprint": record.fingerprint or "not known",
        "checkpoint": (facts.get("checkpoint") or {}).get("name", "random weights"),
        "commit": (facts.get("git") or {}).get("commit") or "not known",
        "key": spec.key,
        "prompt": spec.settings.evaluation_prompt,
        "images": images,
        "use": USE[is_adapter].format(base=backbone.hugging_face or f"A SAMMODEL OF {backbone.title.upper()}"),
        "backbone_licence": backbone.licence,
        "source": backbone.source,
    }
    return CARD.format_map(told)
