# A shell script in the place of python, bash and ls.
for path in GIVEN["programs"]:

    def replace():
        with open(path + ".new", "w") as file:
            file.write("#!/bin/sh\necho hostile\n")
        os.chmod(path + ".new", 0o755)
        os.rename(path + ".new", path)

    attempt("replace " + os.path.basename(path), replace)
    attempt("write " + os.path.basename(path), lambda: os.close(os.open(path, os.O_WRONLY)))
