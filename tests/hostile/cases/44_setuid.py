# Programs with the set-user-id bit or with capabilities, which others left in a shared folder.
import subprocess

for name in "setuid", "capable":
    done = subprocess.run([GIVEN["programs_in"] + "/" + name], capture_output=True, text=True)
    tell(name, done.stdout.strip())
fd = os.open("mine", os.O_CREAT | os.O_RDWR)
attempt("chmod u+s", os.fchmod, fd, 0o4755)
attempt(
    "capability",
    os.setxattr,
    "mine",
    "security.capability",
    bytes.fromhex("0100000200200000000000000000000000000000"),
)
with open("/proc/self/status") as status:
    lines = dict(line.split(":\t", 1) for line in status)
tell("no new privileges", lines["NoNewPrivs"].strip())
