# The Docker socket and other ways to the host.
paths = [
    "/var/run/docker.sock",
    "/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/systemd/private",
    "/run/dbus/system_bus_socket",
    "/var/lib/docker",
    "/run/user",
    "/host",
    GIVEN["canary"],
]
for path in paths:
    if os.path.lexists(path):
        tell("there", path)
tell("looked", "done")
