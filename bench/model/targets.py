"""The words by which a parameter `targets` names layers or halves of a block, joined by +; in the encoder and in the mask decoder."""

from collections.abc import Mapping

LINEAR: Mapping[str, tuple[str, ...]] = {  # words for linear layers, and the shorthands
    **{name: (name,) for name in ("q", "k", "v", "proj", "lin1", "lin2")},
    "qkv": ("q", "k", "v"),
    "mlp": ("lin1", "lin2"),
}
HALVES: Mapping[str, tuple[str, ...]] = {"attention": ("attention",), "mlp": ("mlp",)}  # words for an adapter's place in a block


def meant(targets: str, words: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """What targets stand for, "v+q" or "qkv+mlp", each once, in the order of `words`; KeyError for another word."""
    found = {target for word in targets.split("+") for target in words[word]}
    return tuple(word for word in words if word in found)


def one_spelling(targets: str, words: Mapping[str, tuple[str, ...]]) -> str:
    """The text that names, keys and labels have for all ways to write these targets: "q+v" of "v+q", "qkv" of "v+k+q"."""
    text = "+".join(meant(targets, words))
    for short, parts in words.items():
        text = text.replace("+".join(parts), short)
    return text
