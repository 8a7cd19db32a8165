# Leaves a process that swaps a file with a link to one of the host's, again and again.
def swap():
    while True:
        for name in "temp.py", "README.md":
            with open("own", "w") as file:
                file.write("own")
            os.rename("own", name)
            os.symlink(GIVEN["canary"], "link")
            os.rename("link", name)


spawn(swap)
tell("swapping", "done")
