# GIVEN["flood"] bytes to stdout, with a head and a tail of their own.
os.write(1, b"head\n")
chunk, left = b"x" * (1 << 20), GIVEN["flood"]
while left > 0:
    left -= os.write(1, chunk[:left])
os.write(1, b"\ntail\n")
sys.exit(3)
