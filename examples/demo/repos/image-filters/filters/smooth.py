"""Smoothing."""


def box_blur(picture, radius):
    if radius < 1:
        raise ValueError("radius must be at least 1")
    height, width = len(picture), len(picture[0])
    blurred = []
    for y in range(height):
        rows = picture[max(0, y - radius) : y + radius + 1]
        windows = [
            [value for row in rows for value in row[max(0, x - radius) : x + radius + 1]]
            for x in range(width)
        ]
        blurred.append([sum(window) // len(window) for window in windows])
    return blurred
