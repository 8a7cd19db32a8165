# Code that every later interpreter would run.
import site
import sysconfig

user = os.path.join(
    os.environ["HOME"], ".local/lib/python%d.%d/site-packages" % sys.version_info[:2]
)
line = "import builtins; builtins.hostile = True\n"


def plant(folder):
    os.makedirs(folder, exist_ok=True)
    for name in "hostile.pth", "sitecustomize.py", "usercustomize.py":
        with open(os.path.join(folder, name), "w") as file:
            file.write(line)


if GIVEN["confined"]:
    attempt("site-packages", plant, sysconfig.get_path("purelib"))
    attempt("standard library", plant, os.path.dirname(os.__file__))
attempt("user's", plant, user)
with open("sitecustomize.py", "w") as file:
    file.write(line)
with open(os.path.join(os.environ["HOME"], ".bashrc"), "w") as file:
    file.write("exit 3\n")
