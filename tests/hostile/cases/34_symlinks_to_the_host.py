# Puts links to a file of the host's where somebody might read or write results.
import shutil

for name in "temp.py", "README.md", "result.json", "stdout", "stderr", "package":
    if os.path.isdir(name) and not os.path.islink(name):
        shutil.rmtree(name)
    elif os.path.lexists(name):
        os.unlink(name)
    os.symlink(GIVEN["canary"], name)


def write():
    with open("result.json", "r+") as file:
        file.write("HOSTILE")


attempt("through the link", write)
tell("link", os.readlink("temp.py") == GIVEN["canary"])
