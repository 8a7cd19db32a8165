# Unpacks an archive whose entries lead out of the folder, as a download might.
import io
import tarfile
import warnings

warnings.simplefilter("ignore")
data = io.BytesIO()
with tarfile.open(fileobj=data, mode="w") as archive:

    def add(name, kind=tarfile.REGTYPE, link="", text=b"HOSTILE"):
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = kind, link
        entry.size = len(text) if kind == tarfile.REGTYPE else 0
        archive.addfile(entry, io.BytesIO(text))

    add("../" * 40 + GIVEN["canary"].lstrip("/"))
    add("link", tarfile.SYMTYPE, GIVEN["canary"])
    add("hard", tarfile.LNKTYPE, GIVEN["canary"])
data.seek(0)
with tarfile.open(fileobj=data) as archive:
    for entry in archive:
        attempt(entry.name.split("/")[0], lambda: archive.extract(entry))
