# Edits the weights and data that all snippets share.
folder = GIVEN["mount"]
path = folder + "/file.txt"
attempt("append", lambda: os.close(os.open(path, os.O_WRONLY | os.O_APPEND)))
attempt("make", lambda: os.close(os.open(folder + "/new", os.O_CREAT | os.O_WRONLY)))
attempt("chmod", os.chmod, path, 0o666)
attempt("utime", os.utime, path, (0, 0))
attempt("xattr", os.setxattr, path, "user.hostile", b"1")
attempt("link", os.link, path, folder + "/hard")
attempt("rename", os.rename, path, folder + "/other")
attempt("unlink", os.unlink, folder + "/other" if os.path.exists(folder + "/other") else path)
