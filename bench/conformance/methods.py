"""The conformance suite for methods: what every one must keep, tried on a toy SAM and toy images on the CPU, in seconds.

`python -m bench.check lora` prints what it finds, and the tests run it on every registered method.
"""

import json
import math
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from bench.conformance.checks import Broken, Check, NotPromised, need
from bench.conformance.toys import TOY, Rectangles, toy_backbone
from bench.grid.protocol import load_protocol
from bench.grid.registry import METHODS
from bench.grid.spec import choose_method, parse_call
from bench.model.checkpoints import load_sam, weights_sha256
from bench.model.implementation import use
from bench.model.method import build, outline
from bench.model.placement import Placed
from bench.model.sam import Sam, Tuner
from bench.model.segmenter import PromptableSegmenter
from bench.model.sizes import CONFIGS, SamConfig
from bench.training.train import Log, backward, batch_of, fit, optimizer_of
from bench.types import Memory, Prompts

OTHER = SamConfig(
    image_size=96, patch_size=16, width=48, depth=2, heads=3, window=4, global_blocks=(1,), decoder_width=32, decoder_mlp=32, iou_width=32
)
CLOSE = 1e-4  # of the largest value: what the order of sums may change
GRADIENT_CLOSE = 1e-3, 2e-5  # of a gradient's own element, and of the tensor's largest: ten times what the two paths differ by
MERGED_CLOSE = 1e-5
SIZES = ("vit_b", "vit_l", "vit_h")


class MethodSubject:
    """A method as it is called, "lora(rank=8)", and what the checks make of it once and share. config: of the toy backbone."""

    def __init__(self, call: str, config: SamConfig = TOY) -> None:
        self.call, self.config = call, config
        name, parameters = parse_call(call)
        self.cls = METHODS.get(name)
        self.choice = choose_method(self.cls, parameters)
        resolved = load_protocol("smoke").resolve("any", "any", 1, prompt_free=self.choice.prompt_free)
        self.settings = replace(resolved, batch=2)

    def in_blocks(self, blocks: str) -> "MethodSubject":
        """The same in other blocks, where it has a choice of them."""
        placed = {**self.choice.arguments, "blocks": blocks}
        return MethodSubject(choose_method(self.cls, placed).label, self.config) if issubclass(self.cls, Placed) else self

    @property
    def trains(self) -> bool:
        """Whether there is anything to train."""
        return bool(self.trained[0].tuned())

    def fresh(self, seed: int = 0, sam: Sam | None = None) -> PromptableSegmenter:
        """A newly built model, on a backbone of its own unless one is given."""
        return build(self.call, sam or self.backbone(), seed=seed)

    def backbone(self) -> Sam:
        """The toy backbone, made anew."""
        return toy_backbone(0, self.config)

    def train(self, model: PromptableSegmenter, reached: set[str] | None = None, seed: int = 0) -> list[Log]:
        """Trains for a few steps, and returns their logs. The global random states differ from call to call. `reached` gets the names
        of the tensors, and of their parts, that had a gradient other than 0 in any step."""
        _stir()
        data, logs = Rectangles(), []
        for log in fit(model, optimizer_of(model, self.settings), data, data.support(2), self.settings, seed):
            logs.append(log)
            if reached is not None:
                gradients = {name: p.grad for name, p in model.tuned().items() if p.grad is not None}
                reached |= {name for name, gradient in _parts(gradients, model).items() if gradient.any()}
        return logs

    @cached_property
    def trained(self) -> tuple[PromptableSegmenter, list[Log]]:
        """A trained model with its logs; its neighbours on the same backbone were asked before."""
        model = self.fresh(sam=self.neighbours[1].sam)
        return model, self.train(model, self.reached) if model.tuned() else []

    @cached_property
    def reached(self) -> set[str]:
        """The tensors that `trained` had gradients for."""
        return set()

    @cached_property
    def neighbours(self) -> tuple[PromptableSegmenter, PromptableSegmenter, Tensor, Tensor]:
        """Another model of the method and the zero-shot SAM on one backbone, and their logits before `trained` was built on it."""
        sam = self.backbone()
        other, zero_shot = self.fresh(seed=7, sam=sam), build("sam", sam)
        return other, zero_shot, logits_of(other), logits_of(zero_shot)


def _parts(tensors: Mapping[str, Tensor], model: PromptableSegmenter) -> dict[str, Tensor]:
    """The tensors; of the encoder's that have a part for each block, those parts."""
    depth = len(model.tuner.tuned_blocks or range(model.sam.config.depth))
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        by_block = name.startswith("tuner.") and tensor.dim() > 1 and len(tensor) == depth
        found |= {f"{name}[{i}]": part for i, part in enumerate(tensor)} if by_block else {name: tensor}
    return found


_stirred = iter(range(10**9))


def _stir() -> None:
    """Sets the global random states to something else, which nothing may depend on."""
    seed = next(_stirred)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def toy_image(seed: int, height: int = 48, width: int = 64) -> Tensor:
    """A random picture (3, H, W)."""
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)) * 255


def logits_of(model: PromptableSegmenter, gradients: bool = False) -> Tensor:
    """Logits (1, 48, 64) of a box on a random picture, in evaluation mode; gradients: recorded, as in training."""
    box = Prompts(boxes=torch.tensor([[5.0, 5, 40, 30]]))
    with _evaluating(model), torch.set_grad_enabled(gradients):
        return model.decode(model.encode([toy_image(3)]), [box])[0].detach()


@contextmanager
def _evaluating(model: PromptableSegmenter) -> Iterator[None]:
    model.eval()
    with torch.no_grad():
        yield


def describes_itself(method: MethodSubject) -> str:
    cls, parameters = method.cls, dict(method.choice.parameters)
    for what in ("title", "source"):
        need(isinstance(getattr(cls, what, None), str) and getattr(cls, what), f"It has no {what}: a text is needed.")
    revision = method.choice.revision
    need(type(revision) is int and revision >= 1, f"Its revision is {revision!r}: a whole number from 1 is needed.")
    need(cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}("), "It has no docstring of its own, which says what it computes.")
    need(is_dataclass(cls) and cls.__dataclass_params__.frozen, "It is no frozen dataclass.")  # type: ignore[attr-defined]
    try:
        need(
            json.loads(json.dumps(parameters)) == parameters,
            f"Its parameters {parameters} do not come back from JSON, of which keys are made.",
        )
    except TypeError as error:
        raise Broken(f"Its parameters {parameters} cannot stand in a key: {error}.") from None
    again = choose_method(cls, parse_call(method.choice.label)[1])
    need(again == method.choice, f"Its label {method.choice.label} reads back as {again.label}.")
    return f"{cls.title}, revision {revision}; parameters: {', '.join(f.name for f in fields(cls)) or 'none'}"  # type: ignore[attr-defined]


def trains_what_it_says(method: MethodSubject) -> str:
    tuned, says = method.fresh().tuned(), method.choice.trains
    need(bool(tuned) == says, f"It says trains = {says} and has {len(tuned)} trainable tensors.")
    wrong = [f"{name} is {p.dtype}" for name, p in tuned.items() if p.dtype != torch.float32]
    need(not wrong, f"Trainable tensors must be float32: {', '.join(wrong[:3])}.")
    return f"{len(tuned)} trainable tensors" if tuned else "nothing to train"


def its_tensors_are_of_the_groups_that_it_names(method: MethodSubject) -> str:
    model, named = method.fresh(), set(method.choice.groups)
    if not model.tuned():
        raise NotPromised("it trains nothing")
    found = {model.group_of(name) for name in model.tuned()}
    told = f"It names the groups {', '.join(sorted(named))}, and its trained tensors are of {', '.join(sorted(found))}"
    need(found == named, f"{told}: a protocol's learning rate for one of them would match nothing.")
    return f"groups for learning rates: {', '.join(method.choice.groups)}"


def the_optimizer_steps_every_tensor_as_it_says(method: MethodSubject) -> str:
    """Under a protocol whose groups all differ in rate and in weight decay."""
    _needs_training(method)
    model, groups = method.fresh(), method.choice.groups
    rates, decays = {name: 1e-3 / (1 + i) for i, name in enumerate(groups)}, {name: 0.1 + 0.1 * i for i, name in enumerate(groups)}
    apart: dict[str, Any] = {"lr_by_group": tuple(rates.items()), "weight_decay_by_group": tuple(decays.items())}
    settings = replace(method.settings, lr=rates[groups[0]], weight_decay=decays[groups[0]], **apart)
    optimizer, data = optimizer_of(model, settings), Rectangles()
    next(fit(model, optimizer, data, data.support(1), settings, 0))
    for name, tensor in model.tuned().items():
        own = [group for group in optimizer.param_groups if any(tensor is one for one in group["params"])]
        need(len(own) == 1, f"{name} is in {len(own)} of the optimizer's groups.")
        factor, decay = model.rate_factor(name), decays[model.group_of(name)] * model.decays(name)
        need(0 < factor < math.inf, f"Its factor on the learning rate of {name} is {factor}: a finite number above 0 is needed.")
        rate = factor * rates[model.group_of(name)]
        told = f"{name} has the rate {own[0]['lr']:g} and the weight decay {own[0]['weight_decay']:g}, and {rate:g} and {decay:g}"
        need((own[0]["lr"], own[0]["weight_decay"]) == (rate, decay), f"{told} are what the method says.")
    factors = sorted({model.rate_factor(name) for name in model.tuned()} - {1.0})
    free = sum(not model.decays(name) for name in model.tuned())
    times = f"factors on the rate: {', '.join(f'{factor:g}' for factor in factors)}; " * bool(factors)
    return f"each is in one group, with its rate and weight decay; {times}{free} without decay"


def leaves_the_backbone_as_it_is(method: MethodSubject) -> str:
    model, _ = method.trained
    logits_of(model)
    sam, before = model.sam, method.backbone()
    now, then = sam.state_dict(), before.state_dict()
    names, known = set(now), set(then)
    need(names == known, f"The backbone's tensors are other ones now: {', '.join(sorted(names ^ known)[:3])}.")
    changed = [name for name, tensor in then.items() if not torch.equal(tensor, now[name])]
    need(
        not changed and weights_sha256(sam) == weights_sha256(before),
        f"It changed {len(changed)} of the backbone's tensors: {', '.join(changed[:3])}.",
    )
    loose = [name for name, p in sam.named_parameters() if p.requires_grad or p.grad is not None]
    need(not loose, f"The backbone's {', '.join(loose[:3])} got gradients.")
    theirs = {p.data_ptr(): name for name, p in sam.named_parameters()}
    shared = [f"{name} is {theirs[p.data_ptr()]}" for name, p in model.tuned().items() if p.data_ptr() in theirs]
    need(not shared, f"It trains the backbone's own memory: {', '.join(shared[:3])}.")
    return f"{len(known)} tensors equal, none with a gradient"


def every_parameter_learns(method: MethodSubject) -> str:
    _needs_training(method)
    model, logs = method.trained
    need(all(log.loss > 0 for log in logs), f"Its losses are {[round(log.loss, 3) for log in logs]}: above 0 is needed.")
    parts = _parts(model.tuned(), model)
    dead = [name for name in parts if name not in method.reached]  # weight decay may move them all the same
    need(not dead, f"{len(dead)} of {len(parts)} tensors had no gradient but 0 in {len(logs)} steps: {', '.join(dead[:3])}.")
    return f"all {len(parts)} tensors have gradients in {len(logs)} steps, those with a row for each block in every row"


def same_seed_same_numbers(method: MethodSubject) -> str:
    _needs_training(method)
    (model, logs), again = method.trained, method.fresh()
    losses = [log.loss for log in method.train(again)]
    need(losses == [log.loss for log in logs], f"Two trainings with seed 0 have the losses {[log.loss for log in logs]} and {losses}.")
    other = [name for name, p in again.tuned().items() if not torch.equal(p, model.tuned()[name])]
    need(not other, f"Two trainings with seed 0 end with other {', '.join(other[:3])}.")
    return "losses and weights bit for bit, whatever the global random state"


def another_seed_another_start(method: MethodSubject) -> str:
    _needs_training(method)
    first, other = method.fresh(seed=0).tuned(), method.fresh(seed=1).tuned()
    drawn = [name for name in first if not torch.equal(first[name], other[name])]
    if not drawn:
        raise NotPromised("seeds 0 and 1 start from the same weights, and differ in the order of images and in augmentation alone")
    return f"{len(drawn)} of {len(first)} tensors start from random numbers"


def saved_and_loaded_is_the_same_model(method: MethodSubject) -> str:
    model, _ = method.trained
    content = save({name: p.detach().contiguous() for name, p in model.tuned().items()})
    other, expected = method.fresh(seed=99, sam=model.sam), logits_of(model)
    need(not method.trains or not torch.equal(logits_of(other), expected), "Training does not change its logits.")
    other.load_tuned(load(content))
    _same("Its logits after loading what was saved", logits_of(other), expected)
    return f"logits bit for bit; {len(content) / 1e3:.0f} kB here"


def evaluates_without_chance(method: MethodSubject) -> str:
    model, _ = method.trained
    first = logits_of(model)
    _stir()
    _same("Its logits on the same image, under another random state,", logits_of(model), first)
    worst = _difference(logits_of(model, gradients=True), first, allowed=None)
    need(worst <= CLOSE, f"Where gradients are recorded, its logits differ by {worst:.1e} of their largest value; {CLOSE:.0e} is allowed.")
    return "the same image gives the same logits, whether gradients are recorded or not"


def keeps_nothing_of_an_image(method: MethodSubject) -> str:
    model, _ = method.trained
    first = logits_of(model)
    with _evaluating(model):
        model.encode([toy_image(11, 20, 30), toy_image(12)])
    _same("Its logits after other images were encoded", logits_of(model), first)
    return "images before it change nothing"


def images_of_a_batch_do_not_see_each_other(method: MethodSubject) -> str:
    model, _ = method.trained
    images = [toy_image(21, 30, 40), toy_image(22, 64, 64), toy_image(23, 90, 17)]
    boxes = [Prompts(boxes=torch.tensor([[1.0, 2, 15, 25], [3.0, 3, 9, 9]][: 1 + i % 2])) for i in range(3)]
    with _evaluating(model):
        together = model.decode(model.encode(images), boxes)
        alone = [model.decode(model.encode([image]), [box])[0] for image, box in zip(images, boxes, strict=True)]
    worst = max(_difference(a, b) for a, b in zip(together, alone, strict=True))
    return f"three sizes together and alone differ by {worst:.0e}, {CLOSE:.0e} is allowed"


def takes_every_kind_of_prompt(method: MethodSubject) -> str:
    model, _ = method.trained
    grid = model.sam.config.grid
    points = {"points": torch.tensor([[[9.0, 9], [20, 20]]]), "labels": torch.tensor([[1.0, 0]])}
    kinds = [
        Prompts(),
        Prompts(None, points["points"], points["labels"]),
        Prompts(masks=torch.ones(1, 1, 4 * grid, 4 * grid)),
        Prompts(boxes=torch.ones(3, 4)),
    ]
    with _evaluating(model):
        features = model.encode([toy_image(3)] * 4)
        for prompts, logits in zip(kinds, model.decode(features, kinds), strict=True):
            need(
                logits.shape == (len(prompts), 48, 64),
                f"{len(prompts)} prompts on 48×64 pixels give logits of shape {tuple(logits.shape)}.",
            )
            need(torch.isfinite(logits).all(), "It has logits that are not finite.")
    return "none, points, a mask and boxes"


def is_asked_without_prompts_where_it_needs_none(method: MethodSubject) -> str:
    if not method.choice.prompt_free:
        raise NotPromised("it is trained and evaluated with the protocol's prompts")
    (model, _), asked = method.trained, (method.settings.evaluation_prompt, *method.settings.prompt_types)
    need(set(asked) == {"none"}, f"It needs no prompt, and its cells are asked with {', '.join(sorted(set(asked)))}.")
    learned, start = model.decoder.no_prompt, model.sam.prompt_encoder.no_mask_embed.weight
    need(learned is not None, "It needs no prompt, and its decoder learns no embedding of that.")
    with _evaluating(model):
        features = model.encode([toy_image(3)])
        now = model.decode(features, [Prompts()])[0]
        kept, learned.data = learned.data, start + 1  # type: ignore[union-attr]
        other = model.decode(features, [Prompts()])[0]
        learned.data = kept  # type: ignore[union-attr]
    need(not torch.equal(now, other), "It needs no prompt, and its logits do not depend on the embedding that it learns of that.")
    return "without a prompt its logits follow from an embedding that it learns"


def micro_batches_give_the_same_gradients(method: MethodSubject) -> str:
    return _same_gradients(method, "micro-batches of one image", Memory(1))


def checkpointing_gives_the_same_gradients(method: MethodSubject) -> str:
    return _same_gradients(method, "activation checkpointing", Memory(0, True))


def _same_gradients(method: MethodSubject, what: str, memory: Memory) -> str:
    _needs_training(method)
    model, _ = method.trained
    whole, cut = _gradients(method, model, Memory()), _gradients(method, model, memory)
    none = [name for name in whole if (whole[name] is None) != (cut[name] is None)]
    need(not none, f"With {what}, {', '.join(none[:3])} has a gradient only sometimes.")
    given = {name: gradient for name, gradient in whole.items() if gradient is not None}
    least = 1e-3 * max(gradient.abs().max() for gradient in given.values())  # some are 0 but for rounding: a key's bias, say
    worst, where = max((float((a - cut[n]).abs().max() / a.abs().max().clamp(min=least)), n) for n, a in given.items())
    need(worst <= CLOSE, f"With {what}, the gradient of {where} differs by {worst:.1e} of its largest value; {CLOSE:.0e} is allowed.")
    return f"they differ by {worst:.0e} of the largest value, {CLOSE:.0e} is allowed"


def the_fast_path_has_the_references_gradients(method: MethodSubject) -> str:
    _needs_training(method)
    model, _ = method.trained
    found = {}
    for path in ("fast", "reference"):
        with use(path), _without_dropout(model):  # of which the two draw other masks
            found[path] = _gradients(method, model, Memory())
    fast, reference = found["fast"], found["reference"]
    for path, gradients in found.items():
        lacking = [name for name, gradient in gradients.items() if gradient is None]
        need(not lacking, f"In the {path} path {len(lacking)} of {len(gradients)} tensors have no gradient: {', '.join(lacking[:3])}.")
    of_element, of_largest = GRADIENT_CLOSE
    least = 1e-3 * max(gradient.abs().max() for gradient in reference.values())
    for name, a in reference.items():
        wrong = ~((fast[name] - a).abs() <= of_element * a.abs() + of_largest * a.abs().max().clamp(min=least))
        told = f"{int(wrong.sum())} of {a.numel()} elements of the gradient of {name} differ"
        need(not wrong.any(), f"{told}; the first is {_first(fast[name], wrong):.3g}, and {_first(a, wrong):.3g} in the reference path.")
    return f"every element of {len(reference)} tensors, to {of_element:.0e} of itself and {of_largest:.0e} of its tensor's largest"


def _first(values: Tensor, where: Tensor) -> float:
    return float(values[where][0]) if where.any() else 0.0


@contextmanager
def _without_dropout(model: PromptableSegmenter) -> Iterator[None]:
    layers = [(layer, layer.p) for layer in model.modules() if isinstance(layer, nn.modules.dropout._DropoutNd)]
    try:
        for layer, _ in layers:
            layer.p = 0.0
        yield
    finally:
        for layer, p in layers:
            layer.p = p


def _gradients(method: MethodSubject, model: PromptableSegmenter, memory: Memory) -> dict[str, Any]:
    data = Rectangles()
    examples = batch_of(data, data.support(2), method.settings, 0, 0, 0, model.sam.config.grid)
    model.train()
    model.zero_grad()
    backward(model, examples, 5, memory)
    found = {name: None if p.grad is None else p.grad.clone() for name, p in model.tuned().items()}
    model.zero_grad()
    return found


def the_fast_path_is_the_reference(method: MethodSubject) -> str:
    model, _ = method.trained
    with use("reference"):
        plain = logits_of(model)
    worst = _difference(logits_of(model), plain)
    return f"they differ by {worst:.0e}, {CLOSE:.0e} is allowed"


def models_on_one_backbone_do_not_see_each_other(method: MethodSubject) -> str:
    other, zero_shot, *before = method.neighbours
    logits_of(method.trained[0])
    for name, model, logits in zip(("another model of it", "the zero-shot SAM"), (other, zero_shot), before, strict=True):
        _same(f"The logits of {name} on the same backbone, after one was trained,", logits_of(model), logits)
    return "training one changes no other"


def a_frozen_encoder_stays_frozen(method: MethodSubject) -> str:
    model, _ = method.trained
    parts = model.encoder.frozen_parts
    if not parts:
        return "its encoder is its own, and its features are not shared"
    if not model.encoder.is_frozen:
        with _evaluating(model):
            said = [one.prefix([toy_image(3)]).x for one in (model, method.neighbours[0])]
        _same(
            f"Its first_block is {parts}, so what the blocks before it say is kept and shared; after training it and in another model",
            *said,
        )
        return f"what its first {parts} blocks say does not depend on its parameters, and is kept"
    with _evaluating(model):
        features = [one.encode([toy_image(3)]) for one in (model, method.neighbours[1])]
    _same("It adds no step to the encoder, so its features are shared with the zero-shot SAM; they", *[f.embedding for f in features])
    return "its features are the zero-shot SAM's, and are shared with it"


def placed_blocks_alone_are_tuned(method: MethodSubject) -> str:
    """Of a choice of blocks: what is trained is theirs, the others are stock, and those before them are kept."""
    if not issubclass(method.cls, Placed) or method.choice.arguments.get("first_block"):
        raise NotPromised("it has no choice of blocks")
    last = method.config.depth - 1
    placed = method.in_blocks(str(last))
    every_parameter_learns(placed)
    model, whole = placed.trained[0], method.in_blocks("all").fresh()
    need(model.tuner.tuned_blocks == (last,), f"As {placed.call} its tuner's tuned_blocks are {model.tuner.tuned_blocks}.")
    one, all_of_them = (sum(p.numel() for p in each.tuned().values()) for each in (model, whole))
    need(one < all_of_them, f"As {placed.call} it trains {one:,} numbers, and {all_of_them:,} in all blocks.")
    with _evaluating(model):
        image = torch.zeros(1, 3, *[method.config.image_size] * 2)
        carry = model.tuner.first_carry(model.sam.image_encoder, image, _input_of(model, 0))
        for i, block in enumerate(model.sam.image_encoder.blocks[:last]):
            said = [tuner.walk(i, block, _input_of(model, i), carry)[0] for tuner in (model.tuner, Tuner())]
            _same(f"As {placed.call} the outputs of block {i}, which is not tuned, and of the stock block", *said)
    own = [part for part in ("begin", "walked") if getattr(type(model.tuner), part) is not getattr(Tuner, part)]
    kept = model.encoder.frozen_parts
    need(kept == (0 if own else last), f"As {placed.call} what {kept} parts say is kept, {0 if own else last} is expected.")
    return f"blocks={last} trains {one:,} numbers there; the {last} before it are stock" + (" and kept" if kept else "")


def _input_of(model: PromptableSegmenter, i: int) -> Tensor:
    """Numbers as block i takes them, (1, g, g, C)."""
    size = model.sam.config.blocks[i]
    return torch.linspace(-2, 2, size.grid_before**2 * size.before).sin().view(1, size.grid_before, size.grid_before, size.before)


def works_on_another_backbone(method: MethodSubject) -> str:
    model = method.in_blocks("all").fresh(sam=toy_backbone(1, OTHER))  # of which it may lack those that were asked for
    logits = logits_of(model)
    need(
        logits.shape == (1, 48, 64) and torch.isfinite(logits).all(),
        f"Its logits of shape {tuple(logits.shape)} are not finite, or not (1, 48, 64).",
    )
    return f"{OTHER.depth} blocks of width {OTHER.width} on a {OTHER.grid}×{OTHER.grid} grid"


def starts_as_the_frozen_model(method: MethodSubject) -> str:
    worst = _difference(logits_of(method.fresh()), method.neighbours[3], allowed=None)
    if worst > CLOSE:
        raise NotPromised(f"untrained, its logits differ from the zero-shot SAM's by {worst:.2g} of their largest value")
    return f"untrained, its logits are the zero-shot SAM's (to {worst:.0e})"


def merges_into_plain_sam_weights(method: MethodSubject) -> str:
    model, _ = method.trained
    parts = {"image_encoder.": model.tuner.merged(model.sam.image_encoder), "mask_decoder.": model.decoder.merged(model.sam)}
    parts["prompt_encoder."] = model.decoder.prompt_tensors()
    lacking = [prefix.rstrip(".") for prefix, tensors in parts.items() if tensors is None]
    if lacking:
        raise NotPromised(f"no plain weights of the {' and '.join(lacking)} compute what it does")
    merged = {prefix + name: tensor for prefix, tensors in parts.items() for name, tensor in (tensors or {}).items()}
    state = model.sam.state_dict()
    strange = [name for name in merged if name not in state or merged[name].shape != state[name].shape]
    need(not strange, f"It merges into tensors that SAM does not have in this shape: {', '.join(strange[:3])}.")
    stock = build("sam", load_sam(model.sam.config, {**state, **merged}))
    stock.decoder.has_others = model.decoder.has_others  # of the same masks: the others are not what was trained
    worst = _difference(logits_of(stock), logits_of(model), allowed=None)
    need(worst <= MERGED_CLOSE, f"Merged, its logits differ by {worst:.1e} of their largest value; {MERGED_CLOSE:.0e} is allowed.")
    return f"{len(merged)} tensors of a stock SAM; logits differ by {worst:.0e}, {MERGED_CLOSE:.0e} is allowed"


def has_a_size_on_every_backbone(method: MethodSubject) -> str:
    counts = {size: parameters_on(method.call, size) for size in SIZES}
    return "; ".join(f"{size} {count:,} parameters, {4 * count / 1e6:.1f} MB" for size, count in counts.items())


def parameters_on(call: str, size: str) -> int:
    """The trainable parameters of a method on a named backbone, counted without its memory."""
    with torch.device("meta"):
        return sum(p.numel() for p in build(call, outline(CONFIGS[size])).tuned().values())


def _needs_training(method: MethodSubject) -> None:
    if not method.trains:
        raise NotPromised("it trains nothing")


def _same(what: str, found: Tensor, expected: Tensor) -> None:
    if not torch.equal(found, expected):
        raise Broken(f"{what} differ by up to {(found - expected).abs().max():.2g}: none is allowed.")


def _difference(found: Tensor, expected: Tensor, allowed: float | None = CLOSE) -> float:
    """The largest difference, as a share of the largest expected value; Broken where it is more than allowed."""
    worst = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
    if allowed is not None and not worst <= allowed:
        raise Broken(f"They differ by {worst:.1e} of the largest value; {allowed:.0e} is allowed.")
    return worst


METHOD_CHECKS: tuple[Check[MethodSubject], ...] = (
    describes_itself,
    trains_what_it_says,
    its_tensors_are_of_the_groups_that_it_names,
    leaves_the_backbone_as_it_is,
    every_parameter_learns,
    the_optimizer_steps_every_tensor_as_it_says,
    same_seed_same_numbers,
    another_seed_another_start,
    saved_and_loaded_is_the_same_model,
    evaluates_without_chance,
    keeps_nothing_of_an_image,
    images_of_a_batch_do_not_see_each_other,
    takes_every_kind_of_prompt,
    is_asked_without_prompts_where_it_needs_none,
    micro_batches_give_the_same_gradients,
    checkpointing_gives_the_same_gradients,
    the_fast_path_is_the_reference,
    the_fast_path_has_the_references_gradients,
    models_on_one_backbone_do_not_see_each_other,
    a_frozen_encoder_stays_frozen,
    placed_blocks_alone_are_tuned,
    works_on_another_backbone,
    starts_as_the_frozen_model,
    merges_into_plain_sam_weights,
    has_a_size_on_every_backbone,
)
