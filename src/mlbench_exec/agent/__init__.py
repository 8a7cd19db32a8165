"""The program inside the sandbox: standard library only, CPython 3.7 and later, shipped as bytes.

    kernel    system calls that Python doesn't wrap
    frames    messages to and from the host
    view      what a snippet sees of the file system
    meter     what a snippet uses, and how long it could not run
    snippet   one snippet, from fork to verdict material
    main      the loop: set up once, then run snippet after snippet

Nothing here imports the host's side; modules import only those above them in this list.
"""
