"""Every check of the conformance suites can fail: methods and data sets that are broken on purpose, and what is said of them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from conftest import Rectangles
from torch import nn

from bench.check import main
from bench.conformance import datasets, methods
from bench.conformance.checks import Finding, examined
from bench.conformance.datasets import DATASET_CHECKS, DatasetSubject
from bench.conformance.methods import METHOD_CHECKS, MethodSubject
from bench.grid.registry import DATASETS, METHODS
from bench.model.attention import KeyValues
from bench.model.decoder import Decoded, Decoder
from bench.model.implementation import implementation
from bench.model.method import Method
from bench.model.placement import Placed, PlacedTuner
from bench.model.retuned import retuned
from bench.model.sam import Tuner, attend, feed_forward
from bench.types import Sample


class Sound(Tuner):
    """A scale and a shift of the patch embedding; what is broken on purpose is a subclass."""

    def __init__(self, sam):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(1)), nn.Parameter(0.01 * torch.randn(sam.config.width))

    def step(self, i, block, x, carry):
        return super().step(i, block, self.changed(x) if i == 0 else x, carry)

    def changed(self, x):
        return self.scale * x + self.shift


class MovesTheBackbone(Sound):
    def __init__(self, sam):
        super().__init__(sam)
        sam.image_encoder.pos_embed.data.add_(1)


class AddsALayer(Sound):
    def __init__(self, sam):
        super().__init__(sam)
        sam.image_encoder.more = nn.Linear(2, 2)


class TrainsTheBackbonesMemory(Sound):
    def __init__(self, sam):
        super().__init__(sam)
        self.own = nn.Parameter(sam.image_encoder.pos_embed.data)


class AsksForGradients(Sound):
    def __init__(self, sam):
        super().__init__(sam)
        sam.image_encoder.pos_embed.requires_grad_(True)


class HasSpareParameters(Sound):
    def __init__(self, sam):
        super().__init__(sam)
        self.spare = nn.Parameter(torch.ones(3))


class DrawsFromNumpy(Sound):
    def __init__(self, sam):
        super().__init__(sam)
        self.shift.data += np.random.rand()


class CountsInABuffer(Sound):
    def __init__(self, sam):
        super().__init__(sam)
        self.register_buffer("seen", torch.zeros(1))

    def changed(self, x):
        self.seen += self.training
        return super().changed(x) + self.seen


class HasNoEffect(Sound):
    def changed(self, x):
        return x + 0 * super().changed(x)


class IsNoisy(Sound):
    def changed(self, x):
        return super().changed(x) + 0.1 * torch.rand_like(x)


class EvaluatesRounded(Sound):
    def changed(self, x):
        return super().changed(x) if torch.is_grad_enabled() else (super().changed(x) * 16).round() / 16


class LeavesABlockOut(Sound):
    def __init__(self, sam):
        super().__init__(sam)
        self.rows = nn.Parameter(torch.zeros(sam.config.depth, sam.config.width))

    def changed(self, x):
        return super().changed(x) + self.rows[0] + self.rows[1].detach() + self.rows[2]


class Remembers(Sound):
    last = 0.0

    def changed(self, x):
        x, self.last = x + self.last, float(x.detach().mean())
        return super().changed(x)


class CentresTheBatch(Sound):
    def changed(self, x):
        return super().changed(x) - x.mean(0)


class CountsItsCalls(Sound):
    calls = 0

    def changed(self, x):
        self.calls += 1
        return super().changed(x) * (1 + 0.1 * self.calls)


class KnowsThePath(Sound):
    def changed(self, x):
        return super().changed(x) + (implementation() == "reference")


class SharesItsClass(Sound):
    shared = None

    def __init__(self, sam):
        super().__init__(sam)
        type(self).shared = self.scale

    def changed(self, x):
        return self.shared * x + self.shift + 0 * self.scale


class ClaimsAFrozenBlock(Sound):
    """Its first block is tuned too."""

    first_block = 1


class HidesItsStep(Tuner):
    def __init__(self, sam):
        super().__init__()
        self.shift = nn.Parameter(torch.randn(sam.config.width))
        self.step = lambda i, block, x, carry: Tuner.step(self, i, block, x + self.shift, carry)


class KnowsOneWidth(Sound):
    def __init__(self, sam):
        super().__init__(sam)
        self.shift = nn.Parameter(0.01 * torch.randn(64))


class MergesWrongly(Sound):
    def merged(self, vit):
        return {"pos_embed": vit.pos_embed + self.shift}


class MergesStrangely(Sound):
    def merged(self, vit):
        return {"no_such_tensor": self.shift}


class LooksAtWeights(Sound):
    def __init__(self, sam):
        super().__init__(sam)
        self.shift = nn.Parameter(torch.full((1,), float(sam.image_encoder.pos_embed.mean())))


class HasDoubles(Sound):
    def __init__(self, sam):
        super().__init__(sam)
        self.scale = nn.Parameter(torch.ones(1, dtype=torch.float64))


class DecaysOnly(Sound):
    """A tensor whose gradient is 0, which weight decay moves all the same."""

    def __init__(self, sam):
        super().__init__(sam)
        self.spare = nn.Parameter(torch.ones(3))

    def changed(self, x):
        return super().changed(x) + 0 * self.spare.sum()


class LearnsInOnePath(Sound):
    path = "fast"

    def changed(self, x):
        return self.scale * x + (self.shift.detach() if implementation() == self.path else self.shift)


class LearnsInTheOtherPath(LearnsInOnePath):
    path = "reference"


class LearnsHalfInOnePath(Sound):
    """Half of a tensor; the other half has the gradients that it should have, and larger ones."""

    def changed(self, x):
        half = len(self.shift) // 2
        first = self.shift[:half].detach() if implementation() == "fast" else self.shift[:half]
        return self.scale * x + torch.cat([0.01 * first, self.shift[half:]])


class PutsKeysByPlace(Tuner):
    """Learned keys and values in the place of prompts, which it thinks to be the first rows."""

    def __init__(self, sam):
        super().__init__()
        self.pairs = nn.Parameter(0.1 * torch.randn(sam.config.depth, 2, 3, sam.config.width))

    def step(self, i, block, x, carry):
        def qkv(tokens):
            qkv = block.attn.qkv(tokens)
            q, k, v = (part.clone() for part in qkv.chunk(3, -1))
            if tokens.shape[1] >= 3:  # padding comes as one place
                k[:, :3], v[:, :3] = self.pairs[i].expand(len(x), 2, 3, -1).repeat_interleave(len(tokens) // len(x), 0).unbind(1)
            return torch.cat([q, k, v], -1)

        x, _ = attend(block, x, x.new_zeros(len(x), 3, x.shape[-1]), qkv)
        return feed_forward(block, x), carry


class Walks(Tuner):
    """An encoder that computes with weights which follow from what is learned; nothing of it is a parameter of the encoder."""

    def __init__(self, sam):
        super().__init__()
        self.vit = [retuned(sam.image_encoder, lambda name: False)]  # in a list: no module of this one
        self.learned = nn.ParameterDict()
        for name, layer in self.layers():
            self.learned[name.replace(".", "/")] = nn.Parameter(self.start(layer.weight))

    def layers(self):
        return [(name, layer) for name, layer in self.vit[0].named_modules() if name.startswith("blocks.") and type(layer) is nn.Linear]

    def walked(self, vit):
        for name, layer in self.layers():
            weight = vit.get_submodule(name).weight
            layer.weight = self.computed(weight, self.learned[name.replace(".", "/")])
        return self.vit[0]


class WalksWithLowRank(Walks):
    def start(self, weight):
        return 0.02 * torch.randn(2, sum(weight.shape))

    def computed(self, weight, learned):
        b, a = learned.split(list(weight.shape), 1)
        return weight + b.T @ a


class WalksWithRotations(Walks):
    """Cayley's map of a skew-symmetric matrix, as orthogonal fine-tuning turns a layer's rows."""

    def start(self, weight):
        return 0.01 * torch.randn(len(weight), len(weight))

    def computed(self, weight, learned):
        skew, one = learned - learned.T, torch.eye(len(learned))
        return torch.linalg.solve(one + skew, (one - skew) @ weight)


class WalksWithSingularValues(Walks):
    def start(self, weight):
        return 0.01 * torch.randn(min(weight.shape))

    def computed(self, weight, learned):
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        return u @ ((s + learned)[:, None] * v)


class PatchesForward(Tuner):
    """Layers of its own twin whose forward adds to what they compute, by a hook or by another function."""

    def __init__(self, sam):
        super().__init__()
        self.own = [retuned(sam.image_encoder, lambda name: False)]
        self.shifts = nn.Parameter(0.01 * torch.randn(sam.config.depth, 2, sam.config.width))
        for i, block in enumerate(self.own[0].blocks):
            self.patch(block.mlp.lin2, (i, 0))
            self.patch(block.attn.proj, (i, 1))

    def patch(self, layer, at):
        layer.forward = lambda x: nn.Linear.forward(layer, x) + self.shifts[at]

    def walked(self, vit):
        return self.own[0]


class Hooks(PatchesForward):
    def patch(self, layer, at):
        layer.register_forward_hook(lambda module, given, out: out + self.shifts[at])


class KeyValuePrompts(PutsKeysByPlace):
    """The same learned keys and values, told apart from the image's; every other block gives them to windows one by one."""

    def step(self, i, block, x, carry):
        def of_prompts(zeros):
            keys, values = self.pairs[i].expand(len(zeros), 2, 3, -1).unbind(1)
            return torch.cat([zeros, keys, values], -1)

        x, _ = attend(block, x, x.new_zeros(len(x), 3, x.shape[-1]), block.attn.qkv, by_window=i % 2 == 0, prompt_qkv=of_prompts)
        return feed_forward(block, x), carry


class Gated(Tuner):
    """Learned keys and values behind a gate that starts at 0; every other block gives them to windows one by one."""

    def __init__(self, sam):
        super().__init__()
        self.pairs = nn.Parameter(0.1 * torch.randn(sam.config.depth, 2, 3, sam.config.width))
        self.gates = nn.Parameter(torch.zeros(sam.config.depth, sam.config.heads))

    def step(self, i, block, x, carry):
        besides = KeyValues(self.pairs[i].expand(len(x), -1, -1, -1), self.gates[i])
        return feed_forward(block, attend(block, x, by_window=i % 2 == 0, besides=besides)[0]), carry


class ComputedDecoder(Decoder):
    """SAM's decoder whose projections of queries and keys are computed."""

    def __init__(self, sam):
        super().__init__()
        self.own = [retuned(sam.mask_decoder, lambda name: False)]
        self.scales = nn.Parameter(1 + 0.1 * torch.randn(2))

    def mask_decoder(self, sam):
        for name, layer in self.own[0].named_modules():
            if name.endswith((".q_proj", ".k_proj")):
                layer.weight = sam.mask_decoder.get_submodule(name).weight * self.scales[int(name.endswith("k_proj"))]
        return self.own[0]


class Deaf(Decoder):
    """Evaluated, it has no finite logits for a mask."""

    def forward(self, sam, features, prompts):
        decoded = super().forward(sam, features, prompts)
        bad = [not self.training and one.masks is not None for one in prompts]
        return Decoded([logits / (1 - deaf) for logits, deaf in zip(decoded.logits, bad, strict=True)], decoded.iou)


BROKEN = [
    ("leaves_the_backbone_as_it_is", MovesTheBackbone, "It changed 1 of the backbone's tensors: image_encoder.pos_embed."),
    ("leaves_the_backbone_as_it_is", AddsALayer, "The backbone's tensors are other ones now: image_encoder.more.bias"),
    (
        "leaves_the_backbone_as_it_is",
        TrainsTheBackbonesMemory,
        "the backbone's own memory: tuner.own is image_encoder.pos_embed.",
    ),
    ("leaves_the_backbone_as_it_is", AsksForGradients, "image_encoder.pos_embed got gradients"),
    ("trains_what_it_says", HasDoubles, "must be float32: tuner.scale is torch.float64"),
    ("every_parameter_learns", HasSpareParameters, "1 of 3 tensors had no gradient but 0 in 4 steps: tuner.spare."),
    ("every_parameter_learns", DecaysOnly, "1 of 3 tensors had no gradient but 0 in 4 steps: tuner.spare."),
    ("every_parameter_learns", LeavesABlockOut, "1 of 5 tensors had no gradient but 0 in 4 steps: tuner.rows[1]."),
    ("same_seed_same_numbers", DrawsFromNumpy, "Two trainings with seed 0 have the losses"),
    ("saved_and_loaded_is_the_same_model", CountsInABuffer, "Its logits after loading what was saved differ by up to"),
    ("saved_and_loaded_is_the_same_model", HasNoEffect, "Training does not change its logits."),
    ("evaluates_without_chance", IsNoisy, "under another random state, differ by up to"),
    ("evaluates_without_chance", EvaluatesRounded, "Where gradients are recorded, its logits differ by"),
    ("keeps_nothing_of_an_image", Remembers, "Its logits after other images were encoded differ"),
    ("images_of_a_batch_do_not_see_each_other", CentresTheBatch, "of the largest value; 1e-04 is allowed."),
    ("micro_batches_give_the_same_gradients", CentresTheBatch, "With micro-batches of one image, the gradient of tuner.s"),
    ("checkpointing_gives_the_same_gradients", CountsItsCalls, "With activation checkpointing, the gradient of tuner.s"),
    ("the_fast_path_is_the_reference", KnowsThePath, "of the largest value; 1e-04 is allowed."),
    ("the_fast_path_is_the_reference", PutsKeysByPlace, "of the largest value; 1e-04 is allowed."),
    ("the_fast_path_has_the_references_gradients", LearnsInOnePath, "In the fast path 1 of 2 tensors have no gradient: tuner.shift."),
    (
        "the_fast_path_has_the_references_gradients",
        LearnsInTheOtherPath,
        "In the reference path 1 of 2 tensors have no gradient: tuner.shift.",
    ),
    (
        "the_fast_path_has_the_references_gradients",
        LearnsHalfInOnePath,
        "32 of 64 elements of the gradient of tuner.shift differ",
    ),
    ("models_on_one_backbone_do_not_see_each_other", SharesItsClass, "The logits of another model of it on the same backbone"),
    ("models_on_one_backbone_do_not_see_each_other", MovesTheBackbone, "on the same backbone"),
    ("a_frozen_encoder_stays_frozen", HidesItsStep, "so its features are shared with the zero-shot SAM; they differ"),
    ("a_frozen_encoder_stays_frozen", ClaimsAFrozenBlock, "Its first_block is 1, so what the blocks before it say is kept"),
    ("works_on_another_backbone", KnowsOneWidth, "RuntimeError in tests/conformance/test_conformance.py, line "),
    ("merges_into_plain_sam_weights", MergesWrongly, "Merged, its logits differ by"),
    ("merges_into_plain_sam_weights", MergesStrangely, "that SAM does not have in this shape: image_encoder.no_such_tensor."),
    ("has_a_size_on_every_backbone", LooksAtWeights, "RuntimeError in tests/conformance/test_conformance.py, line "),
]


SOUND = [WalksWithLowRank, WalksWithRotations, WalksWithSingularValues, PatchesForward, Hooks, KeyValuePrompts, Gated]


@pytest.fixture
def registered():
    """Enters classes into the registries for one test."""
    entered = []

    def register(registry, cls, name="on_purpose"):
        entered.append((registry, name))
        return registry.register(name)(cls)

    METHODS.names()
    DATASETS.names()
    yield register
    for registry, name in entered:
        registry._classes.pop(name, None)


def method_of(tuner, decoder=lambda sam: Decoder()):
    @dataclass(frozen=True)
    class OnPurpose(Method):
        """A method for a test."""

        title: ClassVar[str] = "On purpose"
        source: ClassVar[str] = "a test"

        def build(self, sam):
            return tuner(sam), decoder(sam)

    return OnPurpose


def test_a_gate_of_zero_is_the_frozen_model(registered):
    """By the suite's own check, which an open gate is not promised by."""
    registered(METHODS, method_of(Gated))
    subject = MethodSubject("on_purpose")
    assert found(METHOD_CHECKS, "starts_as_the_frozen_model", subject).verdict == "pass"
    open_gate = type("Open", (Gated,), {"__init__": lambda self, sam: (Gated.__init__(self, sam), nn.init.ones_(self.gates))[0]})
    METHODS._classes.pop("on_purpose")
    registered(METHODS, method_of(open_gate))
    assert found(METHOD_CHECKS, "starts_as_the_frozen_model", MethodSubject("on_purpose")).verdict == "not promised"


def found(checks, name, subject) -> Finding:
    return next(examined([check for check in checks if check.__name__ == name], subject))


def test_a_sound_method_breaks_nothing(registered):
    registered(METHODS, method_of(Sound))
    findings = list(examined(METHOD_CHECKS, MethodSubject("on_purpose")))
    assert len(findings) == len(METHOD_CHECKS) and not [f for f in findings if f.verdict == "broken"]
    unpromised = {f.check: f.said for f in findings if f.verdict == "not promised"}
    choices = {"placed blocks alone are tuned", "is asked without prompts where it needs none"}
    assert set(unpromised) == {"starts as the frozen model", "merges into plain sam weights", *choices}
    assert "differ from the zero-shot SAM's by" in unpromised["starts as the frozen model"]


@pytest.mark.parametrize(("tuner", "decoder"), [*((tuner, lambda sam: Decoder()) for tuner in SOUND), (Sound, ComputedDecoder)])
def test_however_a_method_makes_its_weights_they_learn_in_both_paths(tuner, decoder, registered):
    """Decided by the tensors that a block computes with, not by the parameters that its modules have."""
    registered(METHODS, method_of(tuner, decoder))
    subject = MethodSubject("on_purpose")
    checks = ("every_parameter_learns", "the_fast_path_is_the_reference", "the_fast_path_has_the_references_gradients")
    for check in (*checks, "leaves_the_backbone_as_it_is", "checkpointing_gives_the_same_gradients"):
        assert found(METHOD_CHECKS, check, subject).verdict == "pass", found(METHOD_CHECKS, check, subject)
    model, _ = subject.trained
    frozen = sum(p.numel() for p in model.sam.parameters())
    assert model.size == frozen + sum(p.numel() for p in model.tuned().values())


def test_prompts_of_single_windows_need_a_projection_of_their_own(sam):
    block, x = sam.image_encoder.blocks[0], torch.zeros(1, 4, 4, sam.config.width)
    with pytest.raises(ValueError, match="prompts need a prompt_qkv"):
        attend(block, x, x[:, 0], block.attn.qkv, by_window=True)


class StartsTheSame(Sound):
    def __init__(self, sam):
        super().__init__(sam)
        nn.init.zeros_(self.shift)


def test_what_nobody_must_promise_is_found_either_way(registered):
    registered(METHODS, method_of(StartsTheSame))
    subject = MethodSubject("on_purpose")
    verdicts = [found(METHOD_CHECKS, check, subject).verdict for check in ("starts_as_the_frozen_model", "another_seed_another_start")]
    assert verdicts == ["pass", "not promised"]


@pytest.mark.parametrize(("check", "tuner", "says"), BROKEN)
def test_a_method_that_is_broken_on_purpose_is_told_so(check, tuner, says, registered):
    registered(METHODS, method_of(tuner))
    finding = found(METHOD_CHECKS, check, MethodSubject("on_purpose"))
    assert finding.verdict == "broken" and says in finding.said and "\n" not in finding.said, finding


class Shifts(PlacedTuner):
    """A shift of every tuned block's input; what is broken on purpose is a subclass."""

    def __init__(self, sam, blocks):
        super().__init__(sam, blocks)
        self.shifts = nn.Parameter(0.01 * torch.randn(len(self.sizes), sam.config.width))

    def step(self, i, block, x, carry):
        return super().step(i, block, x + self.shifts[i], carry)


class IsEverywhere(Shifts):
    def __init__(self, sam, blocks):
        super().__init__(sam, tuple(range(sam.config.depth)))


class HasPartsForAll(Shifts):
    def __init__(self, sam, blocks):
        super().__init__(sam, blocks)
        self.others = nn.ParameterList(torch.ones(2) for i in range(sam.config.depth) if i not in blocks)


class TouchesOthers(Shifts):
    def walk(self, i, block, x, carry):
        return super().walk(i, block, x + self.shifts[0], carry)


class KeepsNothing(Shifts):
    def __init__(self, sam, blocks):
        super().__init__(sam, blocks)
        self.first_block = 0


@pytest.mark.parametrize(
    ("tuner", "says"),
    [
        (Shifts, ""),
        (IsEverywhere, "its tuner's tuned_blocks are (0, 1, 2)."),
        (HasPartsForAll, "2 of 3 tensors had no gradient but 0"),
        (TouchesOthers, "the outputs of block 0, which is not tuned, and of the stock block differ by up to"),
        (KeepsNothing, "what 0 parts say is kept, 2 is expected."),
    ],
)
def test_a_placed_method_that_is_broken_on_purpose_is_told_so(tuner, says, registered):
    @dataclass(frozen=True)
    class OnPurpose(Placed, Method):
        """A method for a test."""

        title: ClassVar[str] = "On purpose"
        source: ClassVar[str] = "a test"

        def build(self, sam):
            return tuner(sam, self.placed(sam)), Decoder()

    registered(METHODS, OnPurpose)
    finding = found(METHOD_CHECKS, "placed_blocks_alone_are_tuned", MethodSubject("on_purpose"))
    assert finding.verdict == ("broken" if says else "pass") and says in finding.said


def test_a_decoder_that_is_broken_on_purpose_is_told_so(registered):
    registered(METHODS, method_of(Sound, lambda sam: Deaf()))
    finding = found(METHOD_CHECKS, "takes_every_kind_of_prompt", MethodSubject("on_purpose"))
    assert finding == Finding("takes every kind of prompt", "broken", "It has logits that are not finite.")


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        (
            {"tuner": "encoder", "tuner.scal": "scales"},
            "names the groups encoder, scales, and its trained tensors are of encoder: ",
        ),
        ({"tuner.scale": "scales"}, "The trained tensor tuner.shift is in no group: the method has groups for tuner.scale alone."),
    ],
)
def test_groups_that_are_not_those_of_its_tensors_are_told(groups, says, registered):
    registered(METHODS, type("Grouped", (method_of(Sound),), {"__doc__": "Grouped.", "groups": lambda self: groups}))
    finding = found(METHOD_CHECKS, "its_tensors_are_of_the_groups_that_it_names", MethodSubject("on_purpose"))
    assert finding.verdict == "broken" and says in finding.said


def test_a_rate_factor_that_is_no_rate_is_told(registered):
    registered(METHODS, type("Still", (method_of(Sound),), {"__doc__": "Still.", "rate_factor": lambda self, name: 0.0}))
    finding = found(METHOD_CHECKS, "the_optimizer_steps_every_tensor_as_it_says", MethodSubject("on_purpose"))
    said = "Its factor on the learning rate of tuner.scale is 0.0: a finite number above 0 is needed."
    assert (finding.verdict, finding.said) == ("broken", said)


class AsksTheFrozen(Decoder):
    def no_mask(self, sam):
        return sam.prompt_encoder.no_mask_embed.weight


def test_a_prompt_free_method_that_does_not_use_what_it_learns_is_told(registered):
    free = type("Free", (method_of(Sound, lambda sam: AsksTheFrozen()),), {"__doc__": "Free.", "prompt_free": True})
    registered(METHODS, free)
    finding = found(METHOD_CHECKS, "is_asked_without_prompts_where_it_needs_none", MethodSubject("on_purpose"))
    said = "It needs no prompt, and its logits do not depend on the embedding that it learns of that."
    assert (finding.verdict, finding.said) == ("broken", said)


class MissesAName(Sound):
    def changed(self, x):
        return x + no_such_name  # noqa: F821


def test_an_error_in_a_methods_code_is_told_once_with_its_place(registered):
    registered(METHODS, method_of(MissesAName))
    findings = list(examined(METHOD_CHECKS, MethodSubject("on_purpose")))
    line = next(n for n, text in enumerate(Path(__file__).read_text().splitlines(), 1) if "x + no_such_name" in text)
    told = [f.said for f in findings if "no_such_name" in f.said]
    assert told == [f"NameError in tests/conformance/test_conformance.py, line {line}: name 'no_such_name' is not defined."]
    others = {f.said for f in findings if f.verdict == "broken"} - set(told)
    assert others == {"It fails as the check above it, “leaves the backbone as it is”."}


def test_a_method_that_describes_itself_badly_is_told_so(registered):
    sound = method_of(Sound)

    @dataclass(frozen=True)
    class Undocumented(sound):
        pass

    @dataclass(frozen=True)
    class Unkeyed(sound):
        """It has a set."""

        blocks: frozenset = field(default=frozenset({1}))

    changes = [
        ({"title": ""}, "no title"),
        ({"source": None}, "no source"),
        ({"revision": "1"}, "revision is '1'"),
        ({"trains": False}, "says trains = False and has 2"),
    ]
    for change, says in changes:
        registered(METHODS, type("Changed", (sound,), {"__doc__": "Changed.", **change}))
        subject = MethodSubject("on_purpose")
        said = [found(METHOD_CHECKS, check, subject) for check in ("describes_itself", "trains_what_it_says")]
        assert any(says in one.said and one.verdict == "broken" for one in said), said
        METHODS._classes.pop("on_purpose")
    for cls, says in ((Undocumented, "no docstring of its own"), (Unkeyed, "cannot stand in a key")):
        registered(METHODS, cls)
        assert says in found(METHOD_CHECKS, "describes_itself", MethodSubject("on_purpose")).said
        METHODS._classes.pop("on_purpose")


# --- data sets


class Plain(Rectangles):
    """Rectangles, as a data set of a test."""


def changed(**attributes):
    return type("Changed", (Plain,), {"__doc__": "Changed.", **attributes})


def loading(change):
    def load(self, split, name):
        sample = Rectangles.load(self, split, name)
        return Sample(*change(sample.name, sample.image, sample.mask))

    return changed(load=load)


def naming(**splits):
    return changed(names=lambda self, split: splits.get(split) or Rectangles.names(self, split))


class Caches(Plain):
    """Gives everybody the same arrays."""

    def __init__(self):
        self.kept = {}

    def load(self, split, name):
        return self.kept.setdefault((split, name), super().load(split, name))


class Remembering(Plain):
    """Its support depends on how often it was asked."""

    asked = 0

    def support(self, shots, draw=0, hold_out_val=False):
        self.asked += 1
        return super().support(shots, draw + self.asked, hold_out_val) if draw else super().support(shots, draw, hold_out_val)


BROKEN_DATA = [
    ("describes_itself", changed(title=""), "no title"),
    ("describes_itself", changed(revision=0), "revision is 0"),
    ("describes_itself", changed(rule=None), "no rule"),
    ("describes_itself", changed(__doc__=None), "no docstring"),
    ("describes_itself", changed(is_generated=classmethod(lambda cls, data: None)), "is_generated says None"),
    ("names_are_unique_and_sorted", naming(test=("test1", "test0")), "test split are not sorted"),
    ("names_are_unique_and_sorted", naming(test=("test0", "test0")), "has test0 more than once"),
    ("names_are_unique_and_sorted", changed(names=lambda self, split: ()), "train split is empty"),
    ("splits_are_disjoint", naming(test=("test0", "train0")), "1 names are in test and in train or val: train0."),
    ("splits_are_disjoint", naming(val=("train3", "val0")), "1 of 2 val images are in train"),
    (
        "official_lists_are_training_images",
        changed(official={1: ("gone",)}),
        "1 images of its official 1-shot list are not in train: gone.",
    ),
    ("official_lists_are_training_images", changed(official={2: ("train0",)}), "official 2-shot list has 1 images"),
    ("official_lists_are_training_images", changed(support=lambda self, *_, **__: ("train3",)), "support(1) is not its official list."),
    ("official_lists_are_training_images", naming(val=("train0",)), "are held out as val"),
    ("support_depends_on_its_arguments_alone", Remembering, " first and ('train"),
    (
        "support_is_drawn_from_the_training_images",
        changed(support=lambda self, shots, *_, **__: ("test0", "test1", "test2", "test3")[:shots]),
        "are held out or no training",
    ),
    ("support_is_drawn_from_the_training_images", changed(support=lambda self, shots, *_, **__: ("train0",) * shots), "has 1 images"),
    ("samples_have_the_promised_form", loading(lambda name, image, mask: ("x", image, mask)), "is named 'x'"),
    ("samples_have_the_promised_form", loading(lambda name, image, mask: (name, image / 255, mask)), "is float64"),
    ("samples_have_the_promised_form", loading(lambda name, image, mask: (name, image, mask[1:])), "uint8 (40, 64) is needed"),
    ("samples_have_the_promised_form", loading(lambda name, image, mask: (name, image, mask * 255)), "has the values 0, 255"),
    ("reading_again_gives_the_same", Caches, "has other pixels when it is read again"),
    (
        "reading_again_gives_the_same",
        loading(lambda name, image, mask: (name, image ^ np.random.randint(0, 2, image.shape, np.uint8), mask)),
        "read again",
    ),
    ("objects_are_found", loading(lambda name, image, mask: (name, image, 0 * mask)), "None of 11 images has an object"),
    (
        "objects_are_found",
        loading(lambda name, image, mask: (name, image, mask * (name != "train0"))),
        "None of its official 1-shot images",
    ),
]


@pytest.mark.parametrize(("check", "cls", "says"), BROKEN_DATA)
def test_a_data_set_that_is_broken_on_purpose_is_told_so(check, cls, says, registered):
    registered(DATASETS, cls)
    finding = found(DATASET_CHECKS, check, DatasetSubject("on_purpose", Path("none")))
    assert finding.verdict == "broken" and says in finding.said and "\n" not in finding.said, finding


@pytest.mark.parametrize("name", ["synth_shadows", "reference"])
def test_a_sound_data_set_breaks_nothing(name, registered):
    if name == "reference":
        registered(DATASETS, changed(official={}), "reference")
    findings = list(examined(DATASET_CHECKS, DatasetSubject(name, Path("none"), images=4)))
    lacks = ["official lists are training images"] if name == "reference" else []
    assert [f for f in findings if f.verdict == "broken"] == [] and [f.check for f in findings if f.verdict == "not promised"] == lacks


def test_every_check_has_been_seen_to_fail():
    methods = {check for check, *_ in BROKEN}
    methods |= {"describes_itself", "takes_every_kind_of_prompt", "its_tensors_are_of_the_groups_that_it_names"}
    methods |= {
        "the_optimizer_steps_every_tensor_as_it_says",
        "is_asked_without_prompts_where_it_needs_none",
        "placed_blocks_alone_are_tuned",
    }
    nobody_must = {"starts_as_the_frozen_model", "another_seed_another_start"}
    assert {check.__name__ for check in METHOD_CHECKS} - methods == nobody_must
    assert {check.__name__ for check in DATASET_CHECKS} == {check for check, *_ in BROKEN_DATA}


# --- the command


def test_the_command_says_what_is_kept_and_what_is_broken(registered, capsys, tmp_path):
    assert main(["sam"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "sam" and lines[-1].startswith(f"15 of {len(METHOD_CHECKS)} checks pass, {len(METHOD_CHECKS) - 15} not promised")
    assert "not promised  every parameter learns" in "\n".join(lines)
    registered(DATASETS, changed(title=""), "nameless")
    assert main(["nameless"]) == 1
    said = capsys.readouterr().out
    assert "broken        describes itself                              It has no title: a text is needed." in said
    assert said.splitlines()[-1].startswith("8 of 9 checks pass, 1 broken, in ")
    for words, says in (
        (["lorra"], "Unknown method or data set 'lorra'. Did you mean lora"),
        (["lora(rnk=3)"], "'rnk'"),
        (["whu", "--data", str(tmp_path)], "does not exist"),
    ):
        assert main(words) == 2
        assert says in capsys.readouterr().err


def test_modules_of_the_suite_name_their_checks_once():
    for module, checks in ((methods, METHOD_CHECKS), (datasets, DATASET_CHECKS)):
        assert len({check.__name__ for check in checks}) == len(checks) and all(check.__module__ == module.__name__ for check in checks)
