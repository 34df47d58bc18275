"""The mean of the last two updates, carried on."""

from effopd.extrapolation.predictors import Method


def _averaged(path, coefficient):
    return path.updates[-2:].mean(axis=0) * (1 + coefficient)


averaged = Method(_averaged, states=2)
