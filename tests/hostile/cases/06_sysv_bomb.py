# System V: a segment, a semaphore set and a queue that nobody removes; then 700 MiB of segments.
IPC_CREAT, IPC_RMID = 0o1000, 0
libc.shmat.restype = ctypes.c_void_p
key = GIVEN["ipc_key"]
small = libc.shmget(key, 4096, IPC_CREAT | 0o600)
attempt("segment", lambda: None if small >= 0 else (_ for _ in ()).throw(OSError(22, "")))
libc.semget(key, 1, IPC_CREAT | 0o600)
libc.msgget(key, IPC_CREAT | 0o600)
made = []
for _ in range(14):
    made.append(libc.shmget(0, 50 << 20, IPC_CREAT | 0o600))
    address = libc.shmat(made[-1], None, 0)
    ctypes.memset(address, 1, 50 << 20)
for segment in made:
    libc.shmctl(segment, IPC_RMID, None)
tell("MiB", "700")
