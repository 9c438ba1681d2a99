"""Some seconds of `python -m tests.fuzz`: the same cases each time, all commands among them."""

import fuzz

SECONDS = 12.0


def test_generated_mistakes_end_in_a_sentence():
    assert fuzz.CASES >= 1000 and set(fuzz.commands()) <= set(fuzz.USAGES)
    found = list(fuzz.outcomes(range(fuzz.CASES), seconds=SECONDS))
    faults = [f"python -m tests.fuzz --only {one.number}\n{one.wrong}\n{one.fault}" for one in found if one.fault]
    assert not faults, "\n\n".join(faults)
    assert len(found) > 10 and len({one.command for one in found}) > 5


def test_a_fault_is_one():
    """The judge itself."""
    assert fuzz.judged(0, "fine") == fuzz.judged(2, "error: The file x is no file.\n") == fuzz.judged(130, "Stopped.\n") == ""
    for code, said in ((0, "Traceback (most recent call last):\n…"), (2, "usage"), (-11, ""), (None, ""), (0, "broken into")):
        assert fuzz.judged(code, said)
