# Opens 1,000 files.
files = []
try:
    while len(files) < 1000:
        files.append(os.open("/dev/null", os.O_RDONLY))
    tell("files", "%d done" % len(files))
except OSError as error:
    tell("files", "%d %s" % (len(files), name_of(error.errno)))
