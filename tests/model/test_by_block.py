"""What is computed of all blocks at once."""

import torch

from bench.model.by_block import of_each


def test_gradients_of_stacks_that_are_added_are_added_to_once():
    """The gradients of a sum are one tensor; a parameter that kept a view of it would get what the next backward adds to the others too."""
    first, second = ([torch.ones(3, requires_grad=True) for _ in range(2)] for _ in range(2))
    for times in (1, 2):
        sum(made.sum() for (made,) in of_each(lambda a, b: [a + b], first, second)).backward()
        assert all(torch.equal(x.grad, torch.full((3,), float(times))) for x in (*first, *second))
