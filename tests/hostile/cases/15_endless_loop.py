# Runs for ever.
tell("runs", "done")
while True:
    pass
