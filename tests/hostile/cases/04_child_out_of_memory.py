# A child takes 700 MiB; the parent doesn't mind and exits with 0.
import subprocess

eat = "kept = [bytearray(b'x') * (4 << 20) for _ in range(175)]"
done = subprocess.run([sys.executable, "-c", eat], stderr=subprocess.DEVNULL)
tell("child", done.returncode)
