"""A tuned model as a file for other tools: plain SAM weights, ONNX, and how large what is stored of it is."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TOY, toy_backbone
from test_renderings import put

import bench
from bench.errors import RequestError
from bench.export import MODEL_FORMATS, main
from bench.exporting import onnx_files
from bench.exporting.merged import mergeable, merged_tensors
from bench.exporting.model_files import FIRST_SAM, FORMATS, write_cat_sam, write_sam
from bench.exporting.onnx_graphs import DecoderGraph, EncoderGraph, no_masks, traced
from bench.grid.plan import choose_methods
from bench.grid.registry import METHODS
from bench.grid.store import TUNED, ResultStore
from bench.model.backbones import CONFIGS
from bench.model.method import build
from bench.model.sam import Sam
from bench.model.sam_modules import StockSam
from methods.cat_sam import high_pass, low_pass

NAMES = METHODS.names()
WITH_HQ = [f"{name}(decoder=hq)" for name in NAMES if "decoder" in METHODS.get(name).__dataclass_fields__]
BOXES = torch.tensor([[5.0, 5, 40, 30], [10, 12, 60, 50], [1, 2, 30, 20], [0, 0, 63, 63], [4, 4, 9, 9]])


def tuned(name, sam=None):
    """A model whose every tuned weight was moved."""
    model = build(name, sam or toy_backbone(), seed=1).eval()
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.tuned().values():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.parametrize("name", [*NAMES, *WITH_HQ])
def test_a_merged_model_is_a_stock_sam(name, tmp_path):
    """Under segment_anything's own forward, from a file, loaded strictly; or it is refused, with the methods that can."""
    model = tuned(name)
    if merged_tensors(model) is None:
        assert name not in mergeable()
        with pytest.raises(RequestError, match=rf"{name.split('(')[0]}.*cannot be merged .*: .*lora"):
            write_sam(model, name, tmp_path / "sam.pth")
        return
    (path,) = write_sam(model, name, tmp_path / "sam.pth")
    stock = Sam(TOY)
    stock.load_state_dict(torch.load(path, weights_only=True), strict=True)
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(3)) * 255
    with torch.no_grad():
        (theirs,) = StockSam.forward(stock, [{"image": image, "original_size": (64, 64), "boxes": BOXES}], multimask_output=False)
        ours = model.decode_low(model.encode([image]), [bench.Prompts(boxes=BOXES)]).logits[0]
    torch.testing.assert_close(ours, theirs["low_res_logits"][:, 0], atol=1e-5, rtol=1e-5)
    untuned = build("sam", toy_backbone()).encode([image])
    assert name == "sam" or (untuned.embedding - model.encode([image]).embedding).abs().max() > 1e-3 or "decoder." in str(model.tuned())


LARGER = {"mona"}  # than 20 MB by its authors' own bottleneck, as its file says


def test_what_is_stored_of_a_vit_l_is_at_most_20_mb():
    """By each method's defaults; a copy of the backbone, which says so of itself, is as large as SAM."""
    with torch.device("meta"):
        sam = Sam(CONFIGS["vit_l"])
        large = {name: sum(4 * p.numel() for p in build(name, sam).tuned().values()) > 19.9e6 for name in NAMES}
    assert {name for name in NAMES if large[name]} == LARGER | {"full"}


@pytest.mark.parametrize("name", ["lora", "hq_sam", "cat_sam_t(hidden=32)", "cat_sam_a(reduction=16)"])
def test_what_is_no_cat_sam_is_not_written_as_one(name, tmp_path):
    with pytest.raises(RequestError, match="cannot be written in the released CAT-SAM format") as error:
        write_cat_sam(tuned(name), name, tmp_path / "cat.pth")
    assert name in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere", "--format", "sam"], "no stored cell"),
        (["nowhere", "--format", "sim"], "Unknown model format 'sim'. Did you mean sam?"),
        (["nowhere"], "--format"),
        (["--format", "sam"], "name a cell's folder"),
        (["nowhere", "--format", "sam", "--parquet"], "not clear"),
    ],
)
def test_a_wrong_request_is_one_sentence(words, says, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


@pytest.mark.parametrize("name", MODEL_FORMATS)
def test_no_format_holds_a_sam_2_and_each_says_what_it_is(name, tmp_path, capsys):
    """Before the cell's weights or its backbone's are read, and nothing is written."""
    store = ResultStore(tmp_path)
    folder = store.folder(put(store, 60.0, backbone="tiny_sam2", method=choose_methods("lora")[0]))
    (folder / TUNED).touch()
    assert main([str(folder), "--format", name, "--out", str(tmp_path / "exported"), "--pretrained", str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert f"--format {name} is {FIRST_SAM[name]}, of the first SAM alone" in error and "a cell of tiny_sam2" in error
    assert error.count("\n") == 1 and not (tmp_path / "exported").exists() and set(MODEL_FORMATS) == set(FORMATS) == set(FIRST_SAM)


def test_a_file_that_is_there_is_kept(tmp_path):
    path = tmp_path / "sam.pth"
    path.write_text("mine")
    with pytest.raises(RequestError, match="is there already"):
        write_sam(tuned("lora"), "lora", path)
    assert path.read_text() == "mine"


@pytest.mark.parametrize("size", [(64, 64), (60, 60), (48, 80)])
def test_the_high_pass_is_a_few_real_products(size):
    """What graphs hold, exactly: in double precision nothing is left of the difference."""
    half = int((size[0] * size[1] * 0.25) ** 0.5 // 2)
    for dtype, atol in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(dtype)
        torch.testing.assert_close((image - low_pass(image, half)).abs(), high_pass(image), atol=atol, rtol=0)


SHORT = replace(TOY, depth=2, global_blocks=(1,), decoder_depth=1)  # tracing takes seconds a layer


def short(name):
    return tuned(name, bench.load_sam(SHORT, seed=0))


def saved(graph, path):
    traced(graph).save(path)
    return onnx_files.session(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cat_sam_t", "cat_sam_a", "oft"])
def test_an_encoder_in_onnx(name, tmp_path):
    model, image = short(name), torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    parts = saved(EncoderGraph(model), tmp_path / "encoder.onnx").run(None, {"image": image.numpy()})
    with torch.no_grad():
        for mine, theirs in zip(model.encoder(image), parts, strict=True):
            torch.testing.assert_close(mine, torch.from_numpy(theirs), atol=1e-3, rtol=0)


def agrees(session, model, prompts, coords, labels, masks=None):
    """Whether the decoder's file and the model say the same of an image's prompts, the file's given as points with labels."""
    generator, grid = torch.Generator().manual_seed(4), SHORT.grid
    embedding = torch.randn(1, SHORT.decoder_width, grid, grid, generator=generator)
    first_global = torch.randn(1, grid, grid, SHORT.width, generator=generator)
    rest = no_masks(coords, labels, grid)
    inputs = embedding, first_global, *(rest if masks is None else (*rest[:2], masks, torch.ones(len(masks))))
    found = session.run(None, {name: tensor.numpy() for name, tensor in zip(DecoderGraph.names[0], inputs, strict=True)})
    with torch.no_grad():
        low = model.decode_low(bench.types.Features(embedding, first_global, ((64, 64),), (True,)), [prompts])
    return all(np.abs(a - b[0].numpy()).max() < 1e-3 for a, b in zip(found, low[:2], strict=True))


@pytest.mark.slow
def test_a_model_in_onnx_with_any_number_of_prompts_of_any_kind(tmp_path):
    model = short("lora(decoder=hq)")
    written = onnx_files.write_onnx(model, "lora(decoder=hq)", tmp_path / "model")
    assert [path.name for path in written] == ["decoder.onnx", "encoder.onnx"] and len(list(tmp_path.iterdir())) == 1
    session = onnx_files.session(written[0])
    facts = session.get_modelmeta().custom_metadata_map
    assert (
        facts["model"] == "lora(decoder=hq)"
        and json.loads(facts["sizes"])["S"] == 64
        and set(onnx_files.DESCRIPTION["decoder"]) <= set(facts)
    )
    corners, of_box = BOXES.unflatten(1, (2, 2)), torch.tensor([[2.0, 3.0]] * 5)
    points, of_point = torch.tensor([[[5.0, 5], [20, 30]], [[30, 20], [9, 9]]]), torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    ended = torch.cat([points, torch.zeros(2, 1, 2)], 1), torch.cat([of_point, -torch.ones(2, 1)], 1)
    both = torch.cat([points, corners[:2]], 1), torch.cat([of_point, of_box[:2]], 1)
    masks = (torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(5)) > 0.5).float()
    nothing = torch.zeros(2, 0, 2), torch.zeros(2, 0)
    assert agrees(session, model, bench.Prompts(boxes=BOXES), corners, of_box)
    assert agrees(session, model, bench.Prompts(boxes=BOXES[:1]), corners[:1], of_box[:1])
    assert agrees(session, model, bench.Prompts(points=points, labels=of_point), *ended)
    assert agrees(session, model, bench.Prompts(boxes=BOXES[:2], points=points, labels=of_point), *both)
    assert agrees(session, model, bench.Prompts(boxes=BOXES[:2], masks=masks), corners[:2], of_box[:2], masks)
    assert agrees(session, model, bench.Prompts(masks=masks), *nothing, masks)
    assert agrees(session, model, bench.Prompts(), nothing[0][:1], nothing[1][:1])
    assert not agrees(session, model, bench.Prompts(boxes=BOXES), corners, of_box.flip(1))


def test_a_missing_package_is_named_with_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_files, "PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(RequestError, match="pip install no_such_package"):
        onnx_files.write_onnx(tuned("sam"), "sam", tmp_path / "model")
    assert not list(tmp_path.iterdir())
