"""The program inside the sandbox: standard library only, CPython 3.7 and later, shipped as bytes.

In an agent, and in the warm interpreters that it starts:

    kernel       system calls that Python doesn't wrap
    frames       messages to and from the host
    steps        system calls on lists: to be made where no Python can run, or once more
    confinement  steps into namespaces, and those that take rights away
    program      what a fork has to do to become a snippet, giving up everything on the way
    front        the `python` on a bash snippet's PATH
    native       machine code: a fork without a copy, steps without Python
    pid1         a fork with an init of its own
    terms        what an agent and its warm interpreters have agreed on

In a warm interpreter alone:

    aspects      what importing a module may not change if it is to be imported ahead
    preload      modules imported ahead, hidden, given back
    helper       what a front calls, in the snippet's namespaces
    finalizers   those of modules imported ahead
    ending       what a program's end leaves out
    warm         serving forks

In an agent alone:

    base         what every snippet sees of the file system, read-only
    view         a snippet's own writable layers over it, and what makes them again
    clock        from what was seen of threads to the time that was stolen from them
    meter        what a snippet uses, and how long it could not run
    world        what stays the same for every snippet of this sandbox
    surroundings a snippet's namespaces and view, made before it is there
    interpreter  the agent's side of warm interpreters
    drain        a stream of a snippet's, bounded
    snippet      watching one snippet from start to end
    environment  an environment's folder, interpreter and variables, prepared once
    setup        from a plain process to pid 1 of the sandbox's own namespaces
    main         the loop: set up once, then run snippet after snippet

Nothing here imports the host's side; modules import only those above them in this list, and neither
of the last two parts imports the other.
"""
