"""The farthest candidate that the gate accepts."""


def farthest(trials, coefficients, start):
    """From the largest coefficient down, until one is accepted. Returns why it ended."""
    for coefficient in reversed(coefficients):
        if trials.trial(coefficient):
            return f"{coefficient:g} was accepted"
    return "every coefficient was rejected"
