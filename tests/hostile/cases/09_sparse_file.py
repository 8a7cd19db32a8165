# A file of one terabyte that holds nothing.
fd = os.open("sparse", os.O_CREAT | os.O_WRONLY)
attempt("1 TiB", os.ftruncate, fd, 1 << 40)
tell("on disk", os.fstat(fd).st_blocks)
