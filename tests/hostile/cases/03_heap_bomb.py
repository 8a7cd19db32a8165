# Takes and touches 700 MiB.
kept = []
for number in range(175):
    kept.append(bytearray(b"x") * (4 << 20))
    if number == 24:
        tell("MiB", "100")
tell("MiB", "700")
