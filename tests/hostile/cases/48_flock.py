# A lock on a file that sandboxes share, while somebody else holds it.
import fcntl

with open(GIVEN["mount"] + "/file.txt") as shared:
    attempt("shared mount", fcntl.flock, shared, fcntl.LOCK_EX | fcntl.LOCK_NB)
with open("README.md") as own:
    attempt("own folder", fcntl.flock, own, fcntl.LOCK_EX | fcntl.LOCK_NB)
