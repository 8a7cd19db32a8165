# Makes 20,000 empty files in its working folder.
count = 0
os.mkdir("many")
try:
    while count < 20000:
        os.close(os.open("many/%d" % count, os.O_CREAT | os.O_WRONLY))
        count += 1
    tell("files", "%d done" % count)
except OSError as error:
    tell("files", "%d %s" % (count, name_of(error.errno)))
