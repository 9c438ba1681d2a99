"""Hugging Face both ways: cells as peft adapters or SamModels, and adapters as cells; against peft and transformers themselves."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import toy_backbone
from safetensors.torch import load_file, save_file
from test_spec import SPEC

import bench
from bench import ROOT
from bench.errors import CheckpointError, RequestError
from bench.evaluate import main as evaluate
from bench.export import main as export
from bench.exporting.merged import merged_tensors
from bench.exporting.peft_files import write_peft
from bench.grid.spec import MethodChoice
from bench.grid.store import Record, ResultStore, read_record
from bench.model.backbones import PRETRAINED
from bench.model.checkpoints import weights_sha256
from bench.model.hugging_face import sam_model_config, to_hugging_face
from bench.run import main as run

pytestmark = pytest.mark.xdist_group("hugging_face")  # whose models take long to import

IMAGE = torch.randint(0, 256, (3, 128, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
BOX = torch.tensor([[20.0, 30.0, 90.0, 110.0]])


@pytest.fixture(scope="module")
def tiny():
    return bench.load_sam("tiny")


def moved(name, sam):
    """A model whose tuned weights are away from where they start."""
    model, generator = bench.build(name, sam, seed=2), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.tuned().values():
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    return model.eval()


def record(name):
    """A record that a card can be made of."""
    spec = replace(SPEC, backbone="tiny", method=MethodChoice(name, (), 1, ""))
    return Record(spec, {"last": {"miou_all": 61.25}}, {"trainable_parameters": 1234}, {"data": {"fingerprint": "ab12"}})


@torch.no_grad()
def logits(model):
    return model.decode_low(model.encode([IMAGE]), [bench.Prompts(boxes=BOX)]).logits[0]


@torch.no_grad()
def of_hugging_face(model, sam):
    pixels = sam.normalised(IMAGE.float())[None]
    return model.eval()(pixel_values=pixels, input_boxes=BOX[None], multimask_output=False).pred_masks[0, :, 0]


def sam_model(sam):
    transformers = pytest.importorskip("transformers")
    model = transformers.SamModel(transformers.SamConfig(**sam_model_config(sam.config)))
    model.load_state_dict(to_hugging_face(sam.state_dict()))
    return model


@pytest.mark.parametrize(
    "name",
    [
        *("lora(rank=2,alpha=6)", "lora(first_block=3)", "dora", "ia3(blocks=0-2)", "lora(decoder=tuned)", "lora(decoder=lora(rank=2))"),
        *("lora(rank=3,alpha=7,targets=qkv+proj+mlp,blocks=last2)", "lora(targets=k+lin1,init=pissa)", "dora(targets=v+mlp,blocks=1+3)"),
        *("vera(rank=8,d_initial=5.0)", "vera(rank=8,d_initial=5.0,projection_seed=4,targets=k,blocks=1-3)"),
        *("oft", "oft(block_size=20,targets=qkv+mlp,blocks=last2)", "boft", "boft(block_size=6,factors=1,targets=proj)"),
    ],
)
def test_an_adapter_says_in_peft_what_it_says_here_and_comes_back(name, tiny, tmp_path, any_butterfly):
    peft, model = pytest.importorskip("peft"), moved(name, tiny)
    folder = tmp_path / "my lora"
    assert {path.name for path in write_peft(model, record(name), folder)} == {path.name for path in folder.iterdir()}
    adapted = peft.PeftModel.from_pretrained(sam_model(tiny), folder)
    theirs = of_hugging_face(adapted.merge_and_unload() if name.startswith("oft") else adapted, tiny)
    assert (logits(model) - logits(bench.build("sam", tiny))).abs().max() > 0.1
    torch.testing.assert_close(logits(model), theirs, atol=2e-4, rtol=0)
    again = bench.build(f"adapter(file={str(folder)!r})", tiny)
    if "decoder" in name:  # merged into SAM's weights by peft
        torch.testing.assert_close(logits(again), logits(model), atol=2e-4, rtol=0)
    else:
        assert type(again.tuner) is type(model.tuner) and torch.equal(logits(again), logits(model))
    assert not again.tuned()
    card = (folder / "README.md").read_text()
    assert "library_name: peft" in card and "61.25 %" in card and "`ab12`" in card and "1,234" in card and "squashed to 128 × 128" in card


@pytest.mark.parametrize("name", ["bitfit", "decoder", "decoder(how=lora)", "full"])
def test_other_methods_are_whole_models(name, tiny, tmp_path):
    transformers, model = pytest.importorskip("transformers"), moved(name, tiny)
    write_peft(model, record(name), tmp_path / "whole")
    theirs = transformers.SamModel.from_pretrained(tmp_path / "whole")
    torch.testing.assert_close(logits(model), of_hugging_face(theirs, tiny), atol=2e-4, rtol=0)
    again, merged = bench.load_sam("tiny", tmp_path / "whole" / "model.safetensors"), bench.load_sam(tiny.config, merged_tensors(model))
    assert weights_sha256(again) == weights_sha256(merged)  # bit for bit
    assert "library_name: transformers" in (tmp_path / "whole" / "README.md").read_text()


def test_what_has_no_form_there_is_refused(tiny, tmp_path):
    with pytest.raises(RequestError, match=r"cat_sam_t is neither a peft adapter nor merged into plain SAM weights; these can: .*sam"):
        write_peft(bench.build("cat_sam_t", tiny), record("cat_sam_t"), tmp_path / "cat")
    assert not (tmp_path / "cat").exists()


def foreign(sam, folder):
    """An adapter of peft's own making, on layers and with a scale that no method here has."""
    peft = pytest.importorskip("peft")
    how = peft.LoraConfig(r=3, lora_alpha=5, use_rslora=True, target_modules=["qkv", "lin1", "v_proj"], rank_pattern={"lin1": 2})
    torch.manual_seed(3)
    model = peft.get_peft_model(sam_model(sam), how)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(folder)
    return model


def test_somebody_elses_adapter_is_computed_as_peft_computes_it(tiny, tmp_path):
    theirs = of_hugging_face(foreign(tiny, tmp_path), tiny)
    ours = logits(bench.build(f"adapter(file={str(tmp_path / 'adapter_model.safetensors')!r})", tiny))
    assert (ours - logits(bench.build("sam", tiny))).abs().max() > 0.1
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=0)
    with pytest.raises(RequestError, match=r"adapter\(file='.*'\) does not fit this backbone: .*"):
        bench.build(f"adapter(file={str(tmp_path)!r})", toy_backbone())
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    save_file({name: tensor for name, tensor in tensors.items() if "layers.1." not in name}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(RequestError, match=r"does not fit this backbone: it lacks .*layers\.1\."):
        bench.build(f"adapter(file={str(tmp_path)!r})", tiny)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for key, value, says in (
        ("of_a_newer_peft", True, "the peft that is installed does not know its of_a_newer_peft"),
        ("r", 5, r"size mismatch for .*lora_A.*\[3, 192\].*\[5, 192\]\)?\.$"),
        ("peft_type", "NEW", "peft knows no peft_type 'NEW'"),
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps({**config, key: value}))
        with pytest.raises(RequestError, match=says):
            bench.build(f"adapter(file={str(tmp_path)!r})", tiny)
    save_file({name: tensor / 0 for name, tensor in tensors.items()}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"lora_A.weight holds NaN or infinite numbers"):
        bench.build(f"adapter(file={str(tmp_path)!r})", tiny)


def test_what_peft_does_not_save_is_not_asked_for(tiny, tmp_path):
    peft = pytest.importorskip("peft")
    theirs = peft.get_peft_model(sam_model(tiny), peft.AdaLoraConfig(init_r=3, target_r=2, total_step=9, target_modules=["qkv"]))
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1)
    theirs.save_pretrained(tmp_path)  # without `ranknum`
    ours = logits(bench.build(f"adapter(file={str(tmp_path)!r})", tiny))
    torch.testing.assert_close(ours, of_hugging_face(theirs, tiny), atol=2e-4, rtol=0)


@pytest.mark.parametrize("neumann", [False, True])
def test_pefts_own_oft_is_computed_as_it_was_trained(neumann, tiny, tmp_path):
    peft = pytest.importorskip("peft")
    how = peft.OFTConfig(oft_block_size=24, use_cayley_neumann=neumann, target_modules=["qkv"], init_weights=False)
    torch.manual_seed(3)
    theirs = peft.get_peft_model(sam_model(tiny), how)
    theirs.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError):  # a map (B, h, w, C) is a convolution's, so the card says to merge
        of_hugging_face(theirs, tiny)
    ours = bench.build(f"adapter(file={str(tmp_path)!r})", tiny)
    assert (type(ours.tuner).__name__ == "OFTTuner") == (not neumann)  # of the series, which is none of a rotation, peft makes weights
    torch.testing.assert_close(logits(ours), of_hugging_face(theirs.merge_and_unload(), tiny), atol=2e-4, rtol=0)


def test_a_key_is_of_the_content_and_not_of_the_place(tiny, tmp_path):
    for place in ("here/mine", "there/mine"):
        write_peft(moved("ia3", tiny), record("ia3"), (tmp_path / place).parent.mkdir() or tmp_path / place)
    from bench.grid.plan import choose_methods

    (here,), (there,) = (choose_methods(f"adapter(file='{tmp_path / place}/mine')") for place in ("here", "there"))
    assert here.parameters == there.parameters and here.label == there.label and here.label.startswith("adapter(file=mine@")
    assert here.files != there.files and here.is_zero_shot
    config = tmp_path / "there/mine/adapter_config.json"
    config.write_text(config.read_text().replace("}", " }"))
    assert choose_methods(f"adapter(file='{tmp_path}/there/mine')")[0].parameters != here.parameters


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("adapter(file='nowhere')", r"adapter\(file='nowhere'\): adapter_config.json and adapter_model.safetensors or .* are needed there"),
        ("adapter(file=some/folder)", "A path needs quotes, file='my/folder'"),
        ("adapter", "adapter"),
    ],
)
def test_a_wrong_adapter_is_one_sentence(text, says, tiny):
    with pytest.raises(RequestError, match=says):
        bench.build(text, tiny)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("{", "adapter_config.json is no adapter_config.json: a table of values in JSON is needed"),
        ("[1]", "a table of values in JSON is needed"),
        ('{"base_model_name_or_path": "lkeab/hq-sam"}', "is made for lkeab/hq-sam, which is the name of no one backbone: --backbone names"),
        ("{}", "is made for nothing, which"),
    ],
)
def test_an_adapter_that_names_no_backbone_is_one_sentence(config, says, tmp_path, capsys):
    (tmp_path / "adapter_config.json").write_text(config)
    (tmp_path / "adapter_model.safetensors").touch()
    assert evaluate(["--adapter", str(tmp_path), "--datasets", "synth_polyps", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


@pytest.mark.slow
def test_a_cell_goes_out_and_comes_back_with_its_scores(tmp_path, polyps):
    words = ["--datasets", "kvasir", "--data", str(polyps), "--backbone", "tiny", "--protocol", "smoke", "--out", str(tmp_path / "out")]
    assert run(["--methods", "lora,sam", *words]) == 0
    cell = next(path.parent for path in tmp_path.rglob("record.json") if "lora" in str(path))
    folder = tmp_path / "exported"
    assert export([str(cell), "--format", "peft", "--out", str(folder), "--pretrained", str(PRETRAINED)]) == 0
    assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert evaluate(["--adapter", str(folder), *words, "--store"]) == 0
    store, own = ResultStore(tmp_path / "out"), read_record(cell)
    (adapter,) = (path.parent for path in tmp_path.rglob("record.json") if "adapter" in str(path.relative_to(tmp_path)))
    found = read_record(adapter)
    rule = own.spec.settings.selections[0]
    assert found.scores[rule] == own.scores[rule] and found.spec.method.label.startswith("adapter(file=exported@")
    asked = ["-m", "bench.run", "--methods", f"sam,adapter(file={folder.name!r})", *words, "--pretrained", str(PRETRAINED), "--dry-run"]
    done = subprocess.run(
        [sys.executable, "-P", *asked], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300
    )
    assert "2 cells, 0 to run" in done.stdout, done.stderr
    other = tmp_path / "downloaded" / "model.safetensors"  # a SAM that is not the backbone's own, in Hugging Face's names
    other.parent.mkdir()
    tensors = to_hugging_face({key: value.clone() for key, value in bench.load_sam("tiny").state_dict().items()})
    del tensors["prompt_encoder.shared_embedding.positional_embedding"]
    save_file({key: value * 0.98 if "neck" in key else value for key, value in tensors.items()}, other)
    given = ["--checkpoint", str(other.parent), "--pretrained", str(tmp_path / "nowhere"), *words]
    assert evaluate(["--adapter", str(folder), *given]) == 0  # beside what is stored
    (rows,) = (tmp_path / "out" / "evaluated").glob("exported@*_downloaded_*/kvasir.csv")
    assert evaluate(["--adapter", str(folder), *given, "--store"]) == 0
    assert run(["--methods", f"adapter(file={str(folder)!r})", *given]) == 0  # the same cell
    cells = [read_record(path.parent) for path in tmp_path.rglob("record.json") if "adapter" in str(path.relative_to(tmp_path))]
    (moved,) = (cell for cell in cells if cell.spec.key != found.spec.key)
    assert moved.provenance["checkpoint"]["name"] == "model.safetensors" and moved.scores != found.scores and rows.stat().st_size
    assert evaluate(["--adapter", str(folder), "--checkpoint", str(folder / "adapter_model.safetensors"), *words]) == 2
    tables = subprocess.run([sys.executable, "-m", "bench.tables", "--out", str(store.root)], cwd=ROOT, capture_output=True, text=True)
    assert "exported@" in tables.stdout + "".join(path.read_text() for path in Path(store.root).rglob("*.md")), tables.stderr
