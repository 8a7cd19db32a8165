import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from filters import read_pgm, write_pgm
from filters.edges import sobel
from filters.points import invert
from filters.smooth import box_blur

FILTERS = {"invert": invert, "sobel": sobel, "blur": lambda picture: box_blur(picture, 1)}

parser = argparse.ArgumentParser(description="Put one picture through one filter.")
parser.add_argument("--input", required=True)
parser.add_argument("--filter", choices=sorted(FILTERS), required=True)
parser.add_argument("--output", required=True)
options = parser.parse_args()

write_pgm(options.output, FILTERS[options.filter](read_pgm(options.input)))
print(f"wrote {options.output}")
