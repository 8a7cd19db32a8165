"""PGM, the plainest picture format there is (P2, in text)."""


def read_pgm(path):
    with open(path) as file:
        magic, width, height, _, *values = file.read().split()
    if magic != "P2":
        raise ValueError(f"{path} is not a P2 file")
    width, height = int(width), int(height)
    return [[int(v) for v in values[y * width : (y + 1) * width]] for y in range(height)]


def write_pgm(path, picture):
    with open(path, "w") as file:
        file.write(f"P2\n{len(picture[0])} {len(picture)}\n255\n")
        file.writelines(" ".join(map(str, row)) + "\n" for row in picture)
