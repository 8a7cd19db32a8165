"""Edges."""


def sobel(picture, scale=1.0):
    height, width = len(picture), len(picture[0])

    def at(x, y):
        return picture[min(max(y, 0), height - 1)][min(max(x, 0), width - 1)]

    def strength(x, y):
        across = sum(
            k * (at(x + 1, y + d) - at(x - 1, y + d)) for d, k in ((-1, 1), (0, 2), (1, 1))
        )
        down = sum(k * (at(x + d, y + 1) - at(x + d, y - 1)) for d, k in ((-1, 1), (0, 2), (1, 1)))
        return min(255, int(scale * (across * across + down * down) ** 0.5))

    return [[strength(x, y) for x in range(width)] for y in range(height)]
