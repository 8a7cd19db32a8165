"""Weights: the files that rows need and images lack: their manifest, one folder, pulling them.

manifest   pure: what there is, which rows need it, where repositories look for it
store      one folder on this machine: what is in it, and what each pull got
download   one file over HTTP, resumed and checked
unpack     one archive, without trusting it
hub        one repository of the Hugging Face Hub, by its own client
pull       several at once, each put into the folder as a whole
"""

from mlbench_exec.weights.manifest import Item, Manifest, Missing, load_manifest, missing, mounted
from mlbench_exec.weights.store import Store, default_folder

__all__ = [
    "Item",
    "Manifest",
    "Missing",
    "Store",
    "default_folder",
    "load_manifest",
    "missing",
    "mounted",
]
