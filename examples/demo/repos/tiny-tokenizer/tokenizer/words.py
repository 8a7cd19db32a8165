"""Words: what is counted before anything is merged."""

import re
from collections import Counter


def count_words(text, lowercase=True):
    return Counter(re.findall(r"[\w'-]+", text.lower() if lowercase else text))
