"""Filters that look at one point at a time."""


def threshold(picture, level):
    return [[255 if value >= level else 0 for value in row] for row in picture]


def invert(picture):
    return [[255 - value for value in row] for row in picture]
