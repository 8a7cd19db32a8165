"""Small programs that would show a difference between `python temp.py` and a warm start."""


def has_fronts(python: str) -> bool:
    """Whether bash can call a warm interpreter: not in a folder of which each snippet has its own."""
    return not python.startswith(("/tmp/", "/var/tmp/"))


COLD = {  # these say so themselves, or are found out and run again: never from a warm interpreter
    "hash_seed",
    "omp_threads",
    "cuda_devices",
    "variable_before_import",
    "patched_before_import",
    "patched_what_an_import_uses",
    "patched_what_an_import_leaves_alone",  # with modules of others' preloaded; bare it is warm
    "shadowed",
    "shadowed_dependency",
    "fake_module",
    "modules_put_back",
    "part_of_a_module_put_back",
    "found_by_now",
    "found_by_now_in_a_folder",
    "found_by_now_by_its_spec",
    "found_by_now_by_what_is_needed",
    "found_by_now_unbroken",
    "import_hook",
    "import_hook_at_the_end",
    "warnings_as_errors",
    "trace_before_import",
    "limits_before_import",
    "path_replaced",
    # Found out for a reason that makes no difference here; the second run is the right one anyway.
    "mp_exception",
    "resource_warning",
}

PROGRAMS = {
    "hello": "print('hello')",
    "empty": "",
    "main_name": "print(__name__, __doc__, __package__, __spec__)",
    "main_doc": '"""A docstring."""\nprint(__doc__)',
    "main_globals": "print(sorted(globals())); print(__builtins__)",
    "main_loader": "print(type(__loader__), __loader__.name, __loader__.path, __cached__)",
    "main_module": "import sys\nm = sys.modules['__main__']\nprint(m, vars(m) is globals(), m.__file__)",
    "main_guard": "if __name__ == '__main__':\n    print('guarded')",
    "file": "import os\nprint(__file__, os.path.exists(__file__))",
    "argv": "import sys\nprint(sys.argv, getattr(sys, 'orig_argv', None))",
    "path": "import sys\nprint(sys.path)",
    "executable": "import sys\nprint(sys.executable, sys.prefix, sys.base_prefix)\n"
    "print(getattr(sys, '_base_executable', None))",
    "flags": "import sys\nprint(sys.flags, sys.warnoptions, sys.dont_write_bytecode)",
    "cwd": "import os\nprint(os.getcwd(), os.listdir('.'))",
    "environment": "import os\nprint([(k, v) for k, v in os.environ.items() if k not in"
    " ('SHLVL', '_', 'OLDPWD', 'PWD')])",
    "getenv": "import os, subprocess\nprint(sorted(line for line in subprocess.run(['env'],"
    " capture_output=True, text=True).stdout.split('\\n') if line[:4] not in ('SHLV', '_=/u', 'PWD=',"
    " 'OLDP')))",
    "modules_at_start": "import sys\nprint(sorted(sys.modules))",
    "modules_after_import": "import json, sys\nprint(sorted(sys.modules))",
    "modules_after_more": "import logging, sys, argparse\nprint(sorted(sys.modules))",
    "submodule_attributes": "import importlib\nprint(hasattr(importlib, 'util'), "
    "hasattr(importlib, 'machinery'))\nimport xml\nprint(hasattr(xml, 'dom'))",
    "package_attributes": "import ahead\nprint(sorted(vars(ahead)))",
    "package_submodule": "import ahead.part\nprint(ahead.part.VALUE, sorted(vars(ahead)))",
    "package_dependency": "import sys, ahead.part\nprint(sorted(n for n in sys.modules if 'ahead' in n))",
    "meta_path": "import sys\nprint(sys.meta_path, sys.path_hooks)",
    "importer_cache": "import sys\nprint(sorted(sys.path_importer_cache))",
    "builtins": "import builtins\nprint(sorted(vars(builtins)), __import__)",
    "frames": "import sys\nf, n = sys._getframe(), 0\nwhile f:\n    n, f = n + 1, f.f_back\nprint(n)",
    "stack": "import inspect\nprint([(f.function, f.lineno, f.filename) for f in inspect.stack()])",
    "recursion": "import sys\ndef f(n):\n    return f(n + 1)\ntry:\n    f(0)\nexcept RecursionError as e:\n"
    "    print(e, sys.getrecursionlimit())",
    "depth": "import sys\ndeepest = 0\ndef f(n):\n    global deepest\n    deepest = n\n    f(n + 1)\n"
    "try:\n    f(0)\nexcept RecursionError:\n    print(deepest)",
    "random_differs": "import random\nprint(random.random() == 0.5, random.getstate()[0])",
    "random_seeded": "import random\nrandom.seed(1)\nprint(random.random(), random.randint(0, 9))",
    "handlers": "import signal\nprint([(s.name, signal.getsignal(s)) for s in sorted(signal.valid_signals())"
    " if hasattr(s, 'name')])",
    "sigmask": "import signal\nprint(signal.pthread_sigmask(signal.SIG_BLOCK, []))",
    "handler": "import os, signal\nsignal.signal(signal.SIGTERM, lambda *a: print('term', a[0]))\n"
    "os.kill(os.getpid(), signal.SIGTERM)\nprint('after')",
    "sigterm": "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\nprint('after')",
    "sigkill": "import os, signal\nprint('before', flush=True)\nos.kill(os.getpid(), signal.SIGKILL)",
    "sigint": "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(5)",
    "keyboard_interrupt": "raise KeyboardInterrupt('by hand')",
    "keyboard_caught": "import os, signal, time\ntry:\n    os.kill(os.getpid(), 2)\n    time.sleep(5)\n"
    "except KeyboardInterrupt:\n    print('caught')",
    "abort": "import os\nos.abort()",
    "atexit": "import atexit\nfor n in range(3):\n    atexit.register(print, 'exit', n)\nprint('end')",
    "atexit_error": "import atexit\natexit.register(lambda: 1 / 0)\nprint('end')",
    "atexit_count": "import atexit, logging, multiprocessing\nprint('end')",
    "exit_none": "import sys\nsys.exit()",
    "exit_0": "import sys\nsys.exit(0)",
    "exit_7": "import sys\nsys.exit(7)",
    "exit_300": "import sys\nsys.exit(300)",
    "exit_negative": "import sys\nsys.exit(-1)",
    "exit_text": "import sys\nsys.exit('a message')",
    "exit_tuple": "import sys\nsys.exit((1, 2))",
    "exit_builtin": "exit(3)",
    "quit_builtin": "quit()",
    "system_exit": "raise SystemExit(4)",
    "exit_in_function": "def f():\n    raise SystemExit('deep')\nf()",
    "os_exit": "import os, sys\nprint('lost')\nsys.stderr.write('kept')\nos._exit(5)",
    "exit_in_thread": "import sys, threading\nt = threading.Thread(target=sys.exit, args=(3,))\n"
    "t.start()\nt.join()\nprint('on')",
    "traceback": "def f(x):\n    return 1 / x\n\n\ndef g():\n    f(0)\n\n\ng()",
    "traceback_chained": "try:\n    1 / 0\nexcept Exception as e:\n    raise ValueError('b') from e",
    "traceback_context": "try:\n    {}['a']\nexcept KeyError:\n    int('x')",
    "traceback_import": "import no_such_module",
    "traceback_from": "from json import no_such_name",
    "traceback_in_library": "import json\njson.loads('{')",
    "traceback_in_import": "import broken",
    "syntax_error": "print(1)\nif True print(2)",
    "indentation_error": "if True:\nprint(1)",
    "null_byte": "print(1)\nx = '\\0'\n\0",
    "bad_encoding": "# -*- coding: no-such -*-\nprint(1)",
    "latin1": "# -*- coding: latin-1 -*-\nprint(ascii('é'))",
    "excepthook": "import sys\nsys.excepthook = lambda *a: print('hook', a[0])\n1 / 0",
    "last_exception": "import sys\nprint(hasattr(sys, 'last_value'), sys.exc_info())",
    "thread": "import threading\nout = []\nts = [threading.Thread(target=out.append, args=(n,)) for n in"
    " range(4)]\n[t.start() for t in ts]\n[t.join() for t in ts]\nprint(sorted(out))",
    "thread_error": "import threading\nt = threading.Thread(target=lambda: 1 / 0, name='worker')\n"
    "t.start()\nt.join()\nprint('on')",
    "thread_main": "import threading\nm = threading.main_thread()\nprint(m.name, m is"
    " threading.current_thread(), m.ident == threading.get_ident(), threading.active_count())",
    "thread_outlives": "import threading, time\nthreading.Thread(target=lambda: (time.sleep(.1),"
    " print('late'))).start()\nprint('main ends')",
    "thread_daemon": "import threading, time\nthreading.Thread(target=time.sleep, args=(9,),"
    " daemon=True).start()\nprint('ends')",
    "os_threads": "import os\nprint(len(os.listdir('/proc/self/task')))",
    "fork": "import os, sys\npid = os.fork()\nif pid == 0:\n    print('child')\n    sys.exit(3)\n"
    "print(os.waitpid(pid, 0)[1], os.getpid() != pid)",
    "mp_fork": "import multiprocessing as mp\ndef f(x):\n    return x * 2\nif __name__ == '__main__':\n"
    "    with mp.get_context('fork').Pool(2) as p:\n        print(p.map(f, range(4)))",
    "mp_spawn": "import multiprocessing as mp\ndef f(x):\n    print('child', x, __name__, flush=True)\n"
    "if __name__ == '__main__':\n    p = mp.get_context('spawn').Process(target=f, args=(1,))\n"
    "    p.start()\n    p.join()\n    print(p.exitcode)",
    "mp_forkserver": "import multiprocessing as mp\ndef f(q):\n    q.put(__name__)\n"
    "if __name__ == '__main__':\n    c = mp.get_context('forkserver')\n    q = c.Queue()\n"
    "    p = c.Process(target=f, args=(q,))\n    p.start()\n    print(q.get())\n    p.join()",
    "mp_names": "import multiprocessing as mp\nprint(mp.current_process().name, mp.get_start_method(),"
    " mp.parent_process(), mp.active_children())",
    "mp_exception": "import multiprocessing as mp\ndef f():\n    raise ValueError('inside')\n"
    "if __name__ == '__main__':\n    p = mp.get_context('fork').Process(target=f, name='w')\n"
    "    p.start()\n    p.join()\n    print(p.exitcode)",
    "mp_folder": "from multiprocessing import process\nprint(process.ORIGINAL_DIR)",
    "futures": "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(2) as e:\n"
    "    print(list(e.map(str, range(3))))",
    "asyncio": "import asyncio\nasync def f():\n    await asyncio.sleep(0)\n    return 5\nprint(asyncio.run(f()))",
    "subprocess": "import subprocess, sys\nprint(subprocess.run([sys.executable, '-c',"
    " 'import sys; print(sys.argv, sorted(sys.modules) != [])'], capture_output=True, text=True))",
    "runs_itself": "import subprocess, sys\nif len(sys.argv) == 1:\n"
    "    print(subprocess.check_output([sys.executable, __file__, 'x'], text=True))\nelse:\n    print('inner')",
    "pickle_main": "import pickle\nclass A:\n    def __init__(self):\n        self.x = 1\n"
    "b = pickle.dumps(A())\nprint(b'__main__' in b, pickle.loads(b).x, A)",
    "getsource": "import inspect\ndef f():\n    return 1  # a comment\nprint(inspect.getsource(f),"
    " inspect.getsourcefile(f), inspect.getmodule(f))",
    "linecache": "import linecache\nprint(linecache.getlines(__file__))",
    "warnings": "import warnings\nwarnings.warn('careful')\nwarnings.warn('old', DeprecationWarning)\n"
    "print(warnings.filters)",
    "warnings_ignored": "import warnings\nwarnings.filterwarnings('ignore')\nimport ahead\n"
    "warnings.warn('x')\nprint(warnings.filters)",
    "warnings_of_package": "import ahead, warnings\nprint(warnings.filters)",
    "warnings_without_package": "import warnings\nprint(warnings.filters)",
    "resource_warning": "import warnings\nwarnings.simplefilter('always')\nopen(__file__)\nprint('x')",
    "logging": "import logging\nlogging.warning('w')\nlogging.info('i')\nlogging.basicConfig(level=10)\n"
    "logging.info('now')\nprint(logging.root.handlers)",
    "logging_time": "import logging\nr = logging.makeLogRecord({})\nr = logging.LogRecord('a', 1, 'p', 1,"
    " 'm', (), None)\nprint(r.relativeCreated < 5000, r.processName, r.threadName)",
    "encodings": "import sys, locale\nprint([(s.name, s.encoding, s.errors, s.line_buffering, s.mode)"
    " for s in (sys.stdin, sys.stdout, sys.stderr)], sys.getfilesystemencoding(),"
    " locale.getpreferredencoding())",
    "streams": "import sys\nprint(sys.stdout, sys.stdout.buffer, sys.stdout.isatty(),"
    " sys.stdout.seekable(), sys.stdin.fileno(), sys.stdout is sys.__stdout__)",
    "unicode": "print('\\u00e9 \\u4e2d \\U0001f600')",
    "surrogate": "print('\\udc80')",
    "buffering": "import os, sys\nprint('first')\nos.write(1, b'second\\n')\nsys.stderr.write('e')\nprint('third')",
    "stdin": "import sys\nprint(repr(sys.stdin.read()), sys.stdin.closed)",
    "input": "print(input())",
    "closed_stdout": "import sys\nprint('x')\nsys.stdout.close()",
    "broken_flush": "import os\nprint('x')\nos.close(1)",
    "del_at_exit": "class A:\n    def __del__(self):\n        print('del')\na = A()\nprint('end')",
    "del_in_a_module": "import argparse\nclass A:\n    def __del__(self):\n        print('del')\n"
    "argparse.kept = A()",
    "del_in_place_of_another": "import argparse\nclass A:\n    def __del__(self):\n"
    "        print('del')\nargparse.FileType = A()",
    "del_uses_module": "import json\nclass A:\n    def __del__(self):\n        print(json.dumps([1]))\na = A()",
    # What an end that leaves something out could lose.
    "del_imports": "import os\nclass A:\n    def __del__(self, write=os.write):\n        try:\n"
    "            import os, stat\n        except ImportError as e:\n"
    "            write(1, str(e).encode())\n        else:\n            write(1, b'del')\na = A()",
    "del_imports_in_a_module": "import os, sys, types\nclass A:\n"
    "    def __del__(self, write=os.write):\n        try:\n            import stat\n"
    "        except ImportError as e:\n            write(1, str(e).encode())\nm = types.ModuleType('m')\nm.a = A()\n"
    "sys.modules['m'] = m",
    "del_as_main_ends": "import argparse, late\na = late.A()",
    "del_as_main_ends_later": "import argparse, late\na = late.A()\ndef f():\n    pass",
    "del_as_main_ends_in_a_cycle": "import late\na = late.A()\na.itself = a",
    "threads_import_at_once": "import threading\nbarrier, seen = threading.Barrier(8), []\ndef f():\n"
    "    barrier.wait()\n    import asyncio, unittest\n    import ahead.part\n"
    "    seen.append((asyncio.sleep.__name__, unittest.TestCase.__name__, ahead.part.VALUE))\n"
    "threads = [threading.Thread(target=f) for _ in range(8)]\nfor each in threads:\n"
    "    each.start()\nfor each in threads:\n    each.join()\nprint(seen)",
    "modules_put_back": "import sys\nfrom unittest import mock\nwith mock.patch.dict(sys.modules):\n"
    "    import ahead\nimport ahead.part\nprint(ahead.part.VALUE)",
    "part_of_a_module_put_back": "import sys\nfrom unittest import mock\n"
    "with mock.patch.dict(sys.modules):\n    import ahead\nimport ahead.other\n"
    "print(ahead.other.A.__name__)",
    "found_by_now": "import optional_user\nprint(optional_user.NAME)",
    "found_by_now_in_a_folder": "import optional_folder_user\nprint(optional_folder_user.NAME)",
    "found_by_now_by_its_spec": "import optional_spec\nprint(optional_spec.FOUND)",
    "found_by_now_by_what_is_needed": "import optional_chain\nprint(optional_chain.NAME)",
    "found_by_now_unbroken": "import optional_broken\nprint(optional_broken.NAME)",
    "what_is_only_there_to_record": "import records\nprint(records.find('nothing_here', None))",
    "thread_left_in_a_write": "import os, threading, time\nin_, out = os.pipe()\n"
    "file = os.fdopen(out, 'wb')\n"
    "threading.Thread(target=file.write, args=(b'x' * (1 << 20),), daemon=True).start()\n"
    "time.sleep(0.1)\nprint('end')",
    "thread_left_with_a_file": "import threading, time\ndef write():\n"
    "    file = open('left.txt', 'w')\n    file.write('x')\n    time.sleep(60)\n"
    "threading.Thread(target=write, daemon=True).start()\ntime.sleep(0.1)\nprint('end')",
    "kinds_compared_at_the_end": "class Kind(type):\n    def __eq__(cls, other):\n"
    "        raise RuntimeError\n    __hash__ = type.__hash__\nclass A(metaclass=Kind):\n"
    "    pass\nimport keeps\nkeeps.KEPT.append(A())\nfile = open('left.txt', 'w')\n"
    "file.write('left')\nkeeps.KEPT.append(file)\ndel file",
    "collected": "import gc\nprint(gc.collect())",
    "del_writes_to_a_kept_file": "import keeps\nfile = open('left.txt', 'w')\nfile.write('left')\n"
    "keeps.KEPT.append(file)\ndel file",
    "del_of_a_cycle_imports": "class A:\n    def __del__(self):\n        import argparse\n"
    "        print(argparse.__name__)\na = A()\na.itself = a\ndel a",
    "del_as_a_module_ends": "import argparse, late\nlate.a = late.A()",
    "del_where_main_is_kept": "import sys, late\nlate.main = sys.modules['__main__']\na = late.A()",
    "del_of_what_was_put_into_stat": "import stat, late\nstat.S_IFREG = late.A()",
    "del_with_the_interpreter": "import os, sys\nclass A:\n    def __del__(self, write=os.write):\n"
    "        write(1, b'del')\nsys.kept = A()",
    "del_of_a_cycle_with_the_interpreter": "import contextvars, os\nclass A:\n"
    "    def __del__(self, write=os.write):\n        write(1, b'del')\na = A()\na.itself = a\n"
    "v = contextvars.ContextVar('v')\nv.set(a)\ndel a",
    "del_of_a_codec": "import codecs, os\nclass A:\n    def __call__(self, name):\n"
    "        print('asked for', name)\n    def __del__(self, write=os.write):\n"
    "        write(1, b'del')\ncodecs.register(A())\ntry:\n    codecs.lookup('none')\n"
    "except LookupError as e:\n    print(e)",
    "del_left_in_os": "import os\nclass A:\n    def __del__(self, write=os.write):\n"
    "        write(1, b'del')\nos.kept = A()",
    "collections_seen": "import gc, os\ngc.disable()\n"
    "gc.callbacks.append(lambda phase, info, write=os.write: write(1, phase.encode()))",
    "exit_without_file": "import sys\ndel __file__\nsys.exit(3)",
    "exit_without_globals": "import sys\n(lambda g, leave: (g.clear(), leave(3)))(globals(), sys.exit)",
    "atexit_cleared": "import atexit\nf = open('left.txt', 'w')\nf.write('x')\natexit._clear()",
    "stdout_deleted": "import sys\nprint('x')\ndel sys.stdout",
    "exit_at_exit": "import atexit, sys\natexit.register(sys.exit, 3)",
    "error_without_a_trace": "import sys\ndef hook(*error):\n    print('hook')\nsys.excepthook = hook\n1 / 0",
    "finalizers_before_other_work": "import atexit\n"
    "atexit.register(lambda: print(torch.library.TABLE))\nimport torch",
    "finalizer_after_torch": "import torch, weakref\nclass A:\n    pass\na = A()\n"
    "weakref.finalize(a, lambda: print(torch.library.TABLE))",
    "finalizer_before_torch": "import weakref\nclass A:\n    pass\na = A()\n"
    "weakref.finalize(a, lambda: print(torch.library.TABLE))\nimport torch",
    "finalizer_and_other_work": "import atexit, weakref\nclass A:\n    pass\na = A()\n"
    "weakref.finalize(a, print, 'finalized')\natexit.register(print, 'other')\nimport torch",
    "finalizer_without_torch": "import ctypes, weakref\nopen('loud', 'w').close()\n"
    "class A:\n    pass\na = A()\nctypes.pythonapi.Py_IncRef(ctypes.py_object(a))\n"
    "weakref.finalize(a, print, 'finalized')",
    "finalizers_of_a_part": "import functools, ahead.other",
    "finalizer_that_imports": "import weakref\nclass A:\n    pass\na = A()\n"
    "def last():\n    import ahead.final\nweakref.finalize(a, last)",
    "finalizer_between": "import ahead.other, weakref\nclass A:\n    pass\na = A()\n"
    "weakref.finalize(a, lambda: print(torch.library.TABLE))\nimport torch",
    "finalizer_of_another_module": "import ahead.final\nopen('loud', 'w').close()",
    "end_called_by_a_program": "import atexit, sys, torch\natexit._run_exitfuncs()\n"
    "print(torch.library.TABLE)\nsys.exit(3)",
    "stdout_full": "import sys\nsys.stdout = open('/dev/full', 'w')\nprint('lost')",
    "stdout_of_its_own": "import sys\nclass Out:\n    flushed = 0\n    def write(self, text):\n"
    "        sys.__stdout__.write(text)\n    def flush(self):\n        self.flushed += 1\n"
    "        sys.__stdout__.write('flush %d' % self.flushed)\nsys.stdout = Out()\nprint('x')",
    "declares_what_we_call": "import ctypes\n"
    "ctypes.pythonapi.Py_AtExit.argtypes = [ctypes.CFUNCTYPE(None)]",
    "called_by_c_at_the_end": "import ctypes\n"
    "print(ctypes.pythonapi.Py_AtExit(ctypes.pythonapi.abort))",
    "written_by_c": "import ctypes\nctypes.CDLL(None).printf(b'from C')",
    "exit_by_c": "import ctypes, sys\nsys.stdout.write('kept')\nsys.stdout.flush()\nctypes.CDLL(None).exit(3)",
    "open_file": "f = open('left.txt', 'w')\nf.write('unflushed')",
    "relative_files": "open('made.txt', 'w').write(open('data.txt').read() * 2)\n"
    "print(open('made.txt').read())",
    "descriptors": "import os\nprint(sorted(os.listdir('/proc/self/fd'))[:3], len(os.listdir('/proc/self/fd')))",
    "first_descriptor": "import os\nprint(os.open('data.txt', 0))",
    "umask": "import os\nos.close(os.open('m', os.O_CREAT, 0o666))\nprint(oct(os.stat('m').st_mode))",
    "process": "import os\nprint(os.getpgrp() > 0, os.nice(0), os.getuid(), os.getgroups())",
    "limits": "import resource as r\nprint([(r.getrlimit(n)) for n in range(16)])",
    "capabilities": "print([l for l in open('/proc/self/status') if l[:3] in ('Cap', 'NoN', 'Sec', 'Sig')])",
    "affinity": "import os\nprint(os.cpu_count(), os.sched_getaffinity(0))",
    "hostname": "import socket, platform\nprint(socket.gethostname(), platform.node(), platform.machine())",
    "times": "import time\nprint(time.process_time() < 5, time.perf_counter() > 0)",
    "gc": "import gc\nprint(gc.isenabled(), gc.get_threshold(), gc.get_debug())",
    "tempfile": "import tempfile, os\nwith tempfile.NamedTemporaryFile() as f:\n    print(os.path.dirname(f.name))",
    "uuid": "import uuid\nprint(uuid.uuid4() != uuid.uuid4())",
    "decimal": "import decimal\nprint(decimal.getcontext())",
    "argparse": "import argparse\np = argparse.ArgumentParser()\np.add_argument('--n', type=int)\n"
    "print(p.parse_args([]), p.prog)\np.parse_args(['--no'])",
    "unittest": "import unittest\nclass T(unittest.TestCase):\n    def test(self):\n        self.assertEqual(1, 1)\n"
    "print(unittest.defaultTestLoader.loadTestsFromTestCase(T).countTestCases())",
    "dataclass": "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int = 0\nprint(P(3), __annotations__"
    " if '__annotations__' in globals() else None)",
    "local_import": "import local_module\nprint(local_module.NAME, local_module.__file__)",
    "import_cached": "import importlib, json\nprint(importlib.import_module('json') is json,"
    " importlib.util.find_spec('json').name)",
    "reload": "import importlib, json\nprint(importlib.reload(json) is json)",
    "patched_after_import": "import json\njson.dumps = lambda x: 'patched'\nprint(json.dumps(1))",
    "patched_what_an_import_leaves_alone": "import typing\ntyping.cast = 'patched'\nimport _socket, select\n"
    "print(typing.cast, _socket.__name__, select.__name__)",
    "patched_what_an_import_uses": "import struct\nstruct.calcsize = lambda x: 7\nimport ctypes.wintypes\n"
    "print(struct.calcsize('i'))",
    "import_in_function": "def f():\n    import ahead\n    return ahead.NAME\nprint(f(), f())",
    "import_error_caught": "try:\n    import no_such\nexcept ImportError as e:\n    print(e, e.name)",
    "sys_path_added": "import sys\nsys.path.insert(0, 'lib')\nimport in_lib, ahead\nprint(in_lib.X, ahead.NAME)",
    "version": "import sys\nprint(sys.version, sys.implementation.name, sys.maxsize)",
    "exec_again": "exec(compile('print(__name__)', 'x', 'exec'))",
    "runpy": "import runpy\nprint(sorted(runpy.run_path('local_module.py'))[-1])",
    # Never from a warm interpreter.
    "hash_seed": "import os\nprint(os.environ.get('PYTHONHASHSEED'))",
    "omp_threads": "import os\nos.environ['OMP_NUM_THREADS'] = '1'\nimport ahead\nprint(ahead.NAME)",
    "cuda_devices": "import os\nos.environ['CUDA_VISIBLE_DEVICES'] = ''\nimport ahead\nprint(ahead.NAME)",
    "variable_before_import": "import os\nos.environ['AHEAD_NAME'] = 'changed'\nimport ahead\nprint(ahead.NAME)",
    "patched_before_import": "import os\nos.getenv = lambda *a: 'patched'\nimport ahead\nprint(ahead.NAME)",
    "shadowed": "import sys\nsys.path.insert(0, 'shadow')\nimport ahead\nprint(ahead.NAME)",
    "shadowed_dependency": "import sys\nsys.path.insert(0, 'shadow_dependency')\nimport ahead.part\n"
    "print(ahead.part.VALUE)",
    "fake_module": "import sys, types\nsys.modules['ahead_needs'] = types.SimpleNamespace(VALUE='fake')\n"
    "import ahead.part\nprint(ahead.part.VALUE)",
    "destructors_in_what_sys_has": "import os, sys\nclass A:\n    def __init__(self, name):\n"
    "        self.name = name\n    def __del__(self, write=os.write):\n"
    "        write(1, self.name.encode() + b'\\n')\n"
    "for name in 'argv', 'warnoptions', 'meta_path', 'path_hooks':\n"
    "    getattr(sys, name).append(A(name))\n"
    "for name in 'path_importer_cache', '_xoptions', 'modules':\n"
    "    getattr(sys, name)['an a'] = A(name)\n"
    "sys.own = A('own')\nsys.implementation.x = A('implementation')\nprint('end')",
    "destructor_in_a_function_that_sys_has": "import os, sys\nclass A:\n"
    "    def __del__(self, write=os.write):\n        write(1, b'del')\n"
    "sys.__interactivehook__.x = A()",
    "import_hook_at_the_end": "import sys\nclass F:\n    @staticmethod\n    def find_spec(name, path=None, target=None):\n"
    "        print('asked for', name)\nsys.meta_path.append(F)\nimport ahead\nprint(ahead.NAME)",
    "import_hook": "import sys\nclass F:\n    @staticmethod\n    def find_spec(name, path=None, target=None):\n"
    "        print('asked for', name)\nsys.meta_path.insert(0, F)\nimport ahead\nprint(ahead.NAME)",
    "warnings_as_errors": "import warnings\nwarnings.simplefilter('error')\nimport ahead\nprint(ahead.NAME)",
    "trace_before_import": "import sys\nsys.settrace(lambda *a: None)\nimport ahead\nprint(ahead.NAME)",
    "limits_before_import": "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
    "import ahead\nprint(ahead.NAME)",
    "path_replaced": "import sys\nsys.path[:] = sys.path[:1]\ntry:\n    import ahead\nexcept ImportError as e:\n"
    "    print(e)",
}
