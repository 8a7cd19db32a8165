# GIVEN["flood"] bytes to stderr alone, and a word to stdout.
chunk, left = b"x" * (1 << 20), GIVEN["flood"]
while left > 0:
    left -= os.write(2, chunk[:left])
tell("stdout", "done")
